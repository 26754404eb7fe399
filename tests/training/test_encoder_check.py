"""An encoder that a run cannot use is named before a worker is asked for; one that it can use goes through a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import encoders
import numpy as np
import pytest
import torch
from conftest import SmallWorld
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2Model, T5Config

from groundray import config
from groundray.analysis.inputs.embedding import Embedder
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.image_search.explain import GroundingMatcher
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.training import preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import StepDone
from groundray.training.in_process import InProcess

pytestmark = pytest.mark.thorough  # whole runs with encoders of every kind


@pytest.fixture(scope="module")
def captions(world: SmallWorld) -> tuple[str, ...]:
    dataset = Dataset.open(str(world.shards / "captions" / "train"), "captions")
    return tuple(text for row in read_group(dataset, 0, ["captions"])["captions"].to_pylist() for text in row)


def settings(world: SmallWorld, folder: Path, *words: str, stages: str = "grounding") -> config.Settings:
    own = (f"--model.language.name={folder}", "--model.language.weights=published", "--model.language.tokenizer=null")
    given = [word for word in world.settings(stages=stages) if "language.tokenizer" not in word]
    return config.load("demo", [*given, *own, "--model.attention_heads=2", *words])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: [p.unlink() for p in f.glob("*token*")], r"expected a fast tokenizer .*found none"),
        (
            lambda f: encoders.edit(f, "tokenizer_config.json", pad_token=None),
            r"expected a tokenizer with a padding token",
        ),
        (
            lambda f: encoders.edit(f, "config.json", vocab_size=20),
            r"a tokenizer of at most the 20 tokens .*got one of",
        ),
        (
            lambda f: encoders.edit(f, "config.json", max_position_embeddings=20),
            r"grounding\.max_tokens: expected at most 18, ",
        ),
        (lambda f: GPT2Config(vocab_size=999).save_pretrained(f), r"got gpt2 at .*: a decoder-only model"),
        (lambda f: T5Config(vocab_size=999).save_pretrained(f), r"got t5 at .*: an encoder-decoder model"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_named_before_workers(
    world: SmallWorld, tmp_path: Path, break_it: object, message: str
) -> None:
    folder = encoders.write(tmp_path / "encoder", "roberta", weights=False)
    preflight.check(settings(world, folder, "--model.language.weights=none"))
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        preflight.check(settings(world, folder, "--model.language.weights=none"))


def test_weights_of_another_architecture_are_named_before_workers(world: SmallWorld, tmp_path: Path) -> None:
    roberta, bert = (encoders.write(tmp_path / name, name) for name in ("roberta", "bert"))
    with pytest.raises(ValueError, match=r"expected weights of .*roberta, a roberta, got those of a bert at "):
        preflight.check(settings(world, roberta, f"--model.language.weights={bert}"))
    shutil.copy(encoders.write(tmp_path / "modernbert", "modernbert") / "model.safetensors", roberta)
    with pytest.raises(ValueError, match=r"roberta lacks weights of its model, a roberta: embeddings\.LayerNorm"):
        preflight.check(settings(world, roberta))


@pytest.mark.parametrize("tower", ["clip_text_model", "siglip_text_model"])
def test_text_towers_refuse_the_language_stage_by_name(world: SmallWorld, tmp_path: Path, tower: str) -> None:
    folder = encoders.write(tmp_path / tower, tower)
    preflight.check(settings(world, folder))
    with pytest.raises(ValueError, match=r"stage language: expected an encoder with a masked language head, got "):
        preflight.check(settings(world, folder, stages="language,grounding"))


def test_too_many_layers_are_named_before_workers(world: SmallWorld, tmp_path: Path) -> None:
    folder = encoders.write(tmp_path / "roberta", "roberta")
    with pytest.raises(ValueError, match=r"grounding\.trains\.language_layers: expected at most 2, got 8"):
        preflight.check(settings(world, folder, "--grounding.trains.language_layers=8"))


def test_an_encoder_loads_from_its_folder_without_weights(world: SmallWorld, tmp_path: Path) -> None:
    """`weights: none` and a folder of a configuration and a tokenizer: a small RoBERTa from scratch."""
    folder = encoders.write(tmp_path / "small", "roberta", weights=False)
    assert not list(folder.glob("*.safetensors"))
    run = settings(world, folder, "--model.language.weights=none")
    first, second = (progression.initial_model(run)[0].language.encoder for _ in range(2))
    assert type(first).__name__ == "RobertaModel"
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("roberta", "language,grounding,relational,retrieval"),
        ("modernbert", "language,grounding"),
        ("deberta-v2", "grounding"),
        ("clip_text_model", "grounding"),
        ("siglip_text_model", "grounding"),
    ],
)
def test_a_run_trains_exports_and_reads_its_encoder(
    world: SmallWorld, captions: tuple[str, ...], tmp_path: Path, name: str, stages: str
) -> None:
    folder = encoders.write(tmp_path / "encoder", name, texts=captions)
    run = settings(
        world,
        folder,
        f"--run.storage={tmp_path}",
        "--grounding.trains.language_layers=1",
        "--grounding.trains.query_key=false",
        "--grounding.special_tokens=false",
        "--relational.trains.language_layers=1",
        "--model.relational.attention_heads=2",
        *(f"--{stage}.epochs=1" for stage in ("language", "grounding", "relational", "retrieval")),
        stages=stages,
    )
    events: list[object] = []
    progression.run_stages(preflight.check(run), InProcess(events.append))
    assert {event.stage for event in events if isinstance(event, StepDone)} == set(stages.split(","))

    before, after = (f"language-{label}" for label in ("ungrounded", "grounded"))
    model = tmp_path / "demo" / "model"
    old, new = (AutoModel.from_pretrained(model / stream).state_dict() for stream in (before, after))
    if "language" not in stages:
        frozen = [key for key in old if any(part in key for part in ("q_proj", "query_proj", "embeddings", "layer.0."))]
        assert frozen
        assert all(torch.equal(old[key], new[key]) for key in frozen)
        assert not all(torch.equal(old[key], new[key]) for key in old)

    exported = export.load(model, "grounding")
    texts = ["a red circle", "red"]
    own = AutoTokenizer.from_pretrained(model / "language")
    assert [own(text).input_ids for text in texts] == [exported.tokenizer(text).input_ids for text in texts]
    assert exported.model.language.special_tokens == ((0, 1) if name == "siglip_text_model" else (1, 1))
    embedder = Embedder.load(model / after)
    with torch.no_grad():
        ids = torch.tensor([exported.tokenizer("a red circle").input_ids])
        hidden = exported.model.language(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    added = exported.model.language.special_tokens
    expected = hidden[added.before : len(hidden) - added.after].mean(dim=0).numpy()
    np.testing.assert_allclose(embedder.embed(texts)[0], expected, rtol=1e-4, atol=1e-5)

    matcher = GroundingMatcher.load(str(model))
    assert matcher is not None
    images = Dataset.open(str(world.shards / "captions" / "val"), "captions")
    picture = read_group(images, 0, ["image"])["image"].to_pylist()[0]
    match = matcher.match("a red circle", matcher.decode(picture))
    assert [word.text for word in match.words] == ["a", "red", "circle"]


@pytest.mark.parametrize("name", ["roberta", "siglip_text_model"])
def test_other_libraries_open_averages_of_merged_adapters(
    world: SmallWorld, captions: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="extra `pretrained` is not installed")
    own = ("--grounding.trains.lora.rank=2", "--grounding.trains.language_layers=1", "--grounding.optimizer.ema=0.5")
    run = settings(
        world,
        encoders.write(tmp_path / "encoder", name, texts=captions),
        f"--run.storage={tmp_path}",
        "--grounding.epochs=1",
        "--grounding.optimizer.lr=0.01",
        *own,
    )
    progression.run_stages(preflight.check(run), InProcess(lambda event: None))
    store = CheckpointStore.at(Folder.at(tmp_path / "demo"))
    finished = store.finished("grounding")
    assert finished is not None
    best = {key.removeprefix("language.bert."): t for key, t in store.weights(store.get(finished.best)).items()}

    model, folder = tmp_path / "demo" / "model", tmp_path / "demo" / "model" / "language-grounded"
    exported = export.load(model).model.language
    averaged = {key: weight for key, weight in exported.encoder.state_dict().items() if not key.startswith("head.")}
    assert [key for key, weight in averaged.items() if not torch.equal(weight, best[key])] == []
    before = export.load_encoder(config.Language(name=str(model / "language-ungrounded"))).state_dict()
    changed = {key for key, weight in averaged.items() if not torch.equal(weight, before[key])}
    assert len(changed) == 6  # query, key, value, output and two maps of the last layer

    tokenizer, vectors = AutoTokenizer.from_pretrained(folder), library.SentenceTransformer(str(folder), device="cpu")
    for text in ("a red circle", "red"):
        encoded = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            hidden = exported(encoded.input_ids, encoded.attention_mask.bool())[0]
            opened = AutoModel.from_pretrained(folder)(**encoded).last_hidden_state[0]
        torch.testing.assert_close(opened, hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(vectors.encode(text)), hidden.mean(dim=0), rtol=1e-4, atol=1e-5)


def test_decoder_models_are_analysed_though_not_trained(tmp_path: Path) -> None:
    pieces = encoders.tokenizer("bytes")
    torch.manual_seed(0)
    GPT2Model(GPT2Config(vocab_size=len(pieces), n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    pieces.save_pretrained(tmp_path / "gpt2")
    assert Embedder.load(tmp_path / "gpt2").embed(["red", "blue"]).shape == (2, 16)
