"""Exported models: each stage's model, the language streams for other libraries, and the cards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SmallWorld
from huggingface_hub import ModelCard
from tiers import thorough
from torch import nn
from transformers import AutoModel, AutoTokenizer

from groundray import config
from groundray.analysis.inputs.embedding import Embedder
from groundray.model import export
from groundray.model.build import build_head, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.pretrained import load_encoder, load_tokenizer
from groundray.model.trunk import build_trunk
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged

WORDS = {"classes": ("circle", "star"), "predicates": ("above",)}
DATA = {"grounding.train": "shards/train (72 images)", "relational.train": "shards/graphs (72 images)"}


@pytest.fixture
def settings(world: SmallWorld) -> config.Settings:
    return config.load("demo", world.settings())


def changed(model: GroundedModel, *parts: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state dict after adding to the parameters of some parts."""
    with torch.no_grad():
        for part in parts:
            for parameter in part.parameters():
                parameter.add_(0.01)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write(folder: Path, settings: config.Settings) -> dict[str, dict[str, torch.Tensor]]:
    """Export a model of the stages grounding, relational and retrieval; return its state dict after each stage."""
    torch.manual_seed(0)
    model = build_model(settings.model)
    writer = export.Writer(folder, settings, load_tokenizer(settings.model.language), model, {})
    states = {}
    relational = build_head("relational", settings.model, model, WORDS)
    for stage, heads, parts in (
        (
            "grounding",
            {"grounding": build_head("grounding", settings.model, model, {})},
            [model.visual, model.language],
        ),
        ("relational", {"relational": relational}, [model.visual.attention, model.language]),
        ("retrieval", {"relational": relational, "retrieval": build_head("retrieval", settings.model, model, {})}, []),
    ):
        model.heads = nn.ModuleDict(heads)
        states[stage] = changed(model, *parts)
        writer.add(stage, states[stage], {"loss": 0.5}, WORDS if stage == "relational" else {})
    writer.close(DATA)
    return states


def test_each_stage_loads_with_equal_weights(settings: config.Settings, tmp_path: Path) -> None:
    states = write(tmp_path, settings)
    for stage, state in states.items():
        model = export.load(tmp_path, stage).model
        assert not model.training
        again = model.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[name], again[name]) for name in state), stage
    assert export.load(tmp_path).stage.name == "retrieval"


def test_unchanged_parts_are_stored_once(settings: config.Settings, tmp_path: Path) -> None:
    write(tmp_path, settings)
    files = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "stages").rglob("*.safetensors"))
    assert files == [
        "stages/grounding/grounding-head.safetensors",
        "stages/grounding/visual.safetensors",
        "stages/relational/relational-head.safetensors",
        "stages/relational/visual.safetensors",
        "stages/retrieval/retrieval-head.safetensors",
        "stages/start/visual.safetensors",
    ]
    about = export.about(tmp_path)
    assert about.stage("retrieval").visual == "stages/relational/visual.safetensors"
    assert about.stage("retrieval").language == "language-relational"
    assert about.stage("retrieval").heads == {
        "relational": "stages/relational/relational-head.safetensors",
        "retrieval": "stages/retrieval/retrieval-head.safetensors",
    }
    assert about.vocabulary["relational"] == WORDS
    with pytest.raises(ValueError, match=r"no stage visual: .* grounding, relational, retrieval"):
        about.stage("visual")


def test_language_streams_load_with_transformers(settings: config.Settings, tmp_path: Path) -> None:
    states = write(tmp_path, settings)
    folders = {"language-ungrounded", "language-grounded", "language-relational", "language"}
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("language")} == folders
    for name, stage in {"language-grounded": "grounding", "language": "relational"}.items():
        alone, tokenizer = AutoModel.from_pretrained(tmp_path / name), AutoTokenizer.from_pretrained(tmp_path / name)
        encoded = tokenizer(["a striped square"], return_tensors="pt")
        model = export.load(tmp_path, stage).model
        with torch.no_grad():
            expected = model.language(encoded.input_ids, encoded.attention_mask.bool())
            torch.testing.assert_close(alone(**encoded).last_hidden_state, expected, rtol=1e-5, atol=1e-6)
        ours = {n: t for n, t in states[stage].items() if n.startswith("language.")}
        assert all(torch.equal(alone.state_dict()[n.removeprefix("language.bert.")], t) for n, t in ours.items())


def test_sentence_transformers_take_the_mean_over_tokens(settings: config.Settings, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="extra `pretrained` is not installed")
    write(tmp_path, settings)
    loaded = library.SentenceTransformer(str(tmp_path / "language"), device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "language")
    model = export.load(tmp_path).model
    for text in ("a striped square", "star"):
        encoded = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            expected = model.language(encoded.input_ids, encoded.attention_mask.bool())[0].mean(dim=0)
        torch.testing.assert_close(torch.from_numpy(loaded.encode(text)), expected, rtol=1e-4, atol=1e-5)


def test_cards_hold_metadata_data_settings_and_metrics(settings: config.Settings, tmp_path: Path) -> None:
    write(tmp_path, settings)
    whole = (tmp_path / "README.md").read_text()
    metadata = ModelCard(whole).data  # as the hub reads it
    assert metadata.library_name == "groundray"
    assert "groundray" in metadata.tags
    assert metadata.license is None
    for text in ("| retrieval | loss | 0.5 |", "shards/graphs (72 images)", "temperature: 0.3", "NeurIPS 2021"):
        assert text in whole
    assert stages_of(tmp_path) == {"grounding", "relational", "retrieval"}
    streams = {
        "language-ungrounded": set(),
        "language-grounded": {"grounding"},
        "language-relational": {"grounding", "relational"},
        "language": {"grounding", "relational", "retrieval"},
    }
    for name, stages in streams.items():
        assert stages_of(tmp_path / name) == stages
        metadata = ModelCard((tmp_path / name / "README.md").read_text()).data
        assert (metadata.library_name, metadata.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    grounded = (tmp_path / "language-grounded" / "README.md").read_text()
    assert "| grounding | loss | 0.5 |" in grounded
    assert "relational.train" not in grounded  # a later stage's data


@pytest.mark.parametrize("folder", ["", "language"])
def test_the_code_in_a_card_runs(settings: config.Settings, tmp_path: Path, folder: str) -> None:
    write(tmp_path, settings)
    text = (tmp_path / folder / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "FOLDER" in code
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path / folder)), names)
    assert names["vectors"].shape == (2, settings.model.language.width)


def stages_of(folder: Path) -> set[str]:
    """Return the stages that the model-index of a folder's card has results of."""
    results = ModelCard((folder / "README.md").read_text()).data.eval_results or []
    return {result.metric_name.partition(":")[0] for result in results}


def test_language_streams_of_the_starting_model_are_kept(settings: config.Settings, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    states = write(first, settings)
    start = export.load(first).model
    tokenizer = load_tokenizer(settings.model.language)
    run = settings.run.model_copy(update={"start_from": str(first)})
    writer = export.Writer(second, settings.model_copy(update={"run": run}), tokenizer, start, dict(start.heads))
    start.heads = nn.ModuleDict({"retrieval": build_head("retrieval", settings.model, start, {})})
    writer.add("retrieval", changed(start, start.language), {}, {})
    writer.close({})
    assert {path.name for path in second.iterdir() if path.name.startswith("language")} == {
        "language",
        "language-ungrounded",
        "language-grounded",
        "language-relational",
        "language-retrieval",
    }
    for name in ("language-grounded", "language-relational"):  # with the cards of the run that trained them
        assert (second / name / "README.md").read_bytes() == (first / name / "README.md").read_bytes()
    control = AutoModel.from_pretrained(second / "language-grounded").state_dict()
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(control[name], states["grounding"][f"language.bert.{name}"])


@pytest.mark.parametrize(
    "trunk",
    [
        *(thorough(trunk) for trunk in ("vgg16", "timm/vit_tiny_patch16_224", "timm/convnext_atto")),
        *("efficientnet_lite0", "timm/resnet18"),
    ],
)
def test_export_of_each_trunk_loads_with_equal_weights(world: SmallWorld, tmp_path: Path, trunk: str) -> None:
    if trunk == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="extra `pretrained` is not installed")
    if trunk.startswith("timm/"):
        pytest.importorskip("timm", reason="extra `models` is not installed")
    words = [f"--model.trunk.name={trunk}", "--model.image_size=32"]
    settings = config.load("demo", world.settings(*words))
    model = build_model(settings.model).double()  # exported as float32
    model.heads["grounding"] = build_head("grounding", settings.model, model, {})
    writer = export.Writer(tmp_path, settings, load_tokenizer(settings.model.language), model, {})
    writer.add("grounding", model.state_dict(), {}, {})
    writer.close({})
    again = export.load(tmp_path).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float() if tensor.is_floating_point() else tensor, again[name]), name


def test_folder_without_an_exported_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no groundray\.json: give a finished run's model/ folder"):
        export.load(tmp_path)
    (tmp_path / "groundray.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(ValueError, match=r"format 1, .* 2"):
        export.load(tmp_path)


def flip(file: Path, place: int = -2) -> None:
    """Flip a bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def exported(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    write(folder, config.load("demo", world.settings()))
    return folder


def sealed_files(folder: Path) -> list[str]:
    return [name for name in Folder.at(folder).files() if not name.endswith("README.md")]


def test_every_file_but_the_cards_is_sealed(exported: Path) -> None:
    assert {*export.about(exported).files, "groundray.json"} == set(sealed_files(exported))
    export.verify(exported, export.about(exported))


def test_flipped_bit_in_any_file_that_is_read_is_an_error(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    stage = export.about(folder).stage()
    read = [name for name in sealed_files(folder) if name.startswith((f"{stage.language}/", "stages/"))]
    read = [name for name in read if not name.startswith("stages/") or name in (stage.visual, *stage.heads.values())]
    for name in ("groundray.json", *read):
        for damage in (flip, lambda file: file.write_bytes(file.read_bytes()[:-9]), lambda file: file.write_bytes(b"")):
            whole = (folder / name).read_bytes()
            damage(folder / name)
            with pytest.raises(Damaged, match=f"{folder}/{name} is damaged"):
                export.load(folder)
            (folder / name).write_bytes(whole)
    for name in read:
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(Damaged, match=f"{folder}/{name} is damaged: it is missing"):
            export.load(folder)
        (folder / name).write_bytes(whole)
    flip(folder / "README.md")
    export.load(folder)


def test_language_stream_alone_is_compared_with_its_seals(exported: Path, tmp_path: Path) -> None:
    """It loads in transformers as before, and groundray names the damaged file."""
    stream = Path(shutil.copytree(exported / "language", tmp_path / "copied"))
    flip(stream / "model.safetensors")
    for load in (lambda: Embedder.load(stream), lambda: load_encoder(config.Language(name=str(stream)))):
        with pytest.raises(Damaged, match=f"{stream}/model.safetensors is damaged: .*delete seals.json"):
            load()
    load_tokenizer(config.Language(name=str(stream)))  # reads no weights
    flip(stream / "tokenizer.json")
    with pytest.raises(Damaged, match=f"{stream}/tokenizer.json is damaged"):
        load_tokenizer(config.Language(name=str(stream)))
    flip(stream / "tokenizer.json")
    (stream / "seals.json").unlink()  # changed on purpose
    Embedder.load(stream)
    AutoModel.from_pretrained(stream)


def test_export_without_seals_is_loaded_and_named_where_it_is_cut_off(exported: Path, tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    content = Folder.at(folder).read_sealed("groundray.json")
    del content["files"]
    Folder.at(folder).write_json("groundray.json", content)
    for seals in folder.glob("*/seals.json"):
        seals.unlink()
    expected, found = export.load(exported).model.state_dict(), export.load(folder).model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    stage = export.about(folder).stage()
    for name in (f"{stage.language}/model.safetensors", stage.visual, f"{stage.language}/tokenizer.json"):
        whole = (folder / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2]):
            (folder / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{folder}/{name.partition('/')[0]}"):
                export.load(folder)
        (folder / name).write_bytes(whole)


@pytest.mark.thorough
def test_cut_trunk_weights_are_named(tmp_path: Path) -> None:
    for name, content in (("a.safetensors", b""), ("a.safetensors", b"x" * 40), ("a.pt", b""), ("a.pt", b"PK\x03\x04")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Damaged, match=f"{tmp_path}/{name} is damaged"):
            build_trunk("vgg16", str(tmp_path / name))
