"""Keys: retrieval heads read what frozen streams make of images and captions, and train as without them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from called_code import called, encoding, named_code, unnamed
from conftest import SmallWorld
from test_workers import alone, losses, passes_on_a_rank
from torch.multiprocessing.spawn import spawn

from groundray import config
from groundray.config import Settings
from groundray.data.local_features import LocalFeatures
from groundray.data.plan import Cursor
from groundray.data.stream import Source, stream
from groundray.model.grounded import GroundedModel
from groundray.rng import hash64
from groundray.stage.contrastive import image_keys, text_queries
from groundray.stage.protocol import Stage
from groundray.storage.folder import Folder
from groundray.training import keys, preflight, progression
from groundray.training.events import EpochDone, FeaturesDone, FeaturesStarted, StepDone
from groundray.training.gradient_sums import GradientSums
from groundray.training.keys import refusal, with_keys
from groundray.training.loop import compute_gradients, validate
from groundray.training.timing import StepTimer
from groundray.training.trunk_features import with_features
from groundray.training.worker import InProcess

BOTH = "relational,retrieval"
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}  # other texts share their rows in the language stream
MADE = [f"retrieval.{split}" for split in ("train", "train", "val", "val")]


def opened(world: SmallWorld, storage: Path, *words: str) -> tuple[Settings, Stage, GroundedModel]:
    """The stage with trunk features attached, and the model that it starts with."""
    words = ("--retrieval.epochs=6", f"--run.storage={storage}", *words)
    settings = config.load("demo", world.settings(*words, stages=BOTH))
    relational, stage = preflight.check(settings).stages
    model, heads = progression.initial_model(settings)
    for one in (relational, stage):
        progression.attach_heads(one, model, heads, settings)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):  # no projection is the identity
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.05 * noise
    return settings, with_features(stage, settings, model.visual.trunk, InProcess(lambda _: None)), model


def gradients(stage: Stage, model: GroundedModel) -> list[tuple[float, list[torch.Tensor]]]:
    """The loss and the gradients of each step of an epoch."""
    stage.prepare(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for step in stream(stage.train, Cursor(), 2):
        loss, _ = compute_gradients(stage, model, step, 0, False, StepTimer(), GradientSums(trained))
        found.append((loss.item(), [parameter.grad.clone() for parameter in trained if parameter.grad is not None]))
        for parameter in trained:
            parameter.grad = None
    return found


def test_loss_and_gradients_are_those_without_keys(world: SmallWorld, tmp_path: Path) -> None:
    """Images' keys are the same bits; captions, drawn anew in each epoch, have the same queries within rounding."""
    settings, plain, model = opened(world, tmp_path, "--retrieval.special_tokens=false")
    events: list[Any] = []
    keyed = with_keys(plain, settings, model, InProcess(events.append))
    assert [type(event) for event in events] == [FeaturesStarted, FeaturesDone] * 4
    assert [event.what for event in events[1::2]] == MADE
    captions = set()
    for read, seen in ((keyed.train, plain.train), (keyed.val, plain.val)):
        for step, other in zip(stream(read, Cursor(), 2), stream(seen, Cursor(), 2), strict=True):
            for (_, batch), (_, images) in zip(step.chunks, other.chunks, strict=True):
                assert batch.ids == images.ids
                assert torch.equal(batch.tokens, images.tokens)
                captions |= {tuple(tokens) for tokens in images.tokens.tolist()}
                if len(batch):
                    assert torch.equal(batch.images, image_keys(model, images.images))
                    mask = images.attention_mask
                    torch.testing.assert_close(
                        batch.queries[mask], text_queries(model, images.tokens, mask)[mask], **ROUNDING
                    )
                    assert not batch.queries[~mask].any()
                    blank = image_keys(model, images.without_images(model.visual.blank).images)
                    torch.testing.assert_close(batch.without_images(model.blank).images, blank, **ROUNDING)
    assert len(captions) > 100  # of 72 images: more than one of each
    for (loss, found), (expected, others) in zip(gradients(keyed, model), gradients(plain, model), strict=True):
        assert loss == pytest.approx(expected, rel=1e-5)
        for one, other in zip(found, others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    for blind in (False, True):  # blank images are equal, so their ranks are those of rounding
        scores = [validate(stage, model, stream(stage.val, Cursor(), 1), blind)["loss"] for stage in (keyed, plain)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_store_s_queries_are_those_of_a_folder(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read in windows there, with those of an image's other captions."""
    settings, plain, model = opened(world, tmp_path)
    keyed = with_keys(plain, settings, model, InProcess(lambda _: None))
    here = list(stream(keyed.train, Cursor(), 2))
    for name in ("local_features", "local_queries"):
        monkeypatch.setattr(Source, name, None)
    for step, other in zip(here, stream(replace(keyed.train), Cursor(), 2), strict=True):
        for (_, batch), (_, remote) in zip(step.chunks, other.chunks, strict=True):
            assert torch.equal(batch.images, remote.images)
            assert torch.equal(batch.queries, remote.queries)


def test_a_damaged_part_of_queries_is_named(world: SmallWorld, tmp_path: Path) -> None:
    settings, plain, model = opened(world, tmp_path)
    keyed = with_keys(plain, settings, model, InProcess(lambda _: None))
    assert keyed.train.queries is not None
    file = Path(keyed.train.queries.folder.path, keyed.train.queries.shards[0].file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00000-000\.parquet.*delete it, and the run"):
        list(stream(replace(keyed.train), Cursor(), 6))


def test_parts_of_maps_are_those_of_whole_maps(world: SmallWorld, tmp_path: Path) -> None:
    settings, plain, model = opened(world, tmp_path)
    keyed = with_keys(plain, settings, model, InProcess(lambda _: None))
    assert keyed.train.queries is not None
    count = keyed.train.samples.queries[0]
    rows = torch.randperm(keyed.train.queries.rows, generator=torch.Generator().manual_seed(0)).numpy()
    numbers = hash64(1, rows) % count
    whole = LocalFeatures(keyed.train.queries).maps(rows).to_pylist()
    size = len(whole[0]) // count
    fresh = LocalFeatures(keyed.train.queries)
    for _ in range(2):  # the first time with the checksums of whole maps
        parts = fresh.maps(rows, numbers.astype("int64"), count).to_pylist()
        assert parts == [
            one[number * size : (number + 1) * size]
            for one, number in zip(whole, numbers.astype(int).tolist(), strict=True)
        ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], None),
        (["--features.keys=never"], "features.keys is never"),
        (["--features.use=never"], "features.use is never"),
        (["--retrieval.precision=bf16"], "its precision is bf16"),
        (["--retrieval.epochs=4"], "4 epochs visit 288 captions, and there are 360"),
        (["--scaling.use_gpu=true"], "a GPU computes them"),
    ],
)
def test_keys_are_used_only_where_they_serve(
    world: SmallWorld, tmp_path: Path, words: list[str], reason: str | None
) -> None:
    words = world.settings("--retrieval.epochs=6", f"--run.storage={tmp_path}", *words, stages=BOTH)
    settings = config.load("demo", words)
    relational, stage = preflight.check(settings).stages
    assert refusal(relational, settings)
    counted = replace(stage.train.dataset, counts={"rows": 72, "captions": 360})
    found = refusal(replace(stage, train=replace(stage.train, dataset=counted)), settings)
    assert found == reason if reason is None else reason in str(found)


@pytest.mark.thorough
def test_a_stage_keeps_what_it_began_with(world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room it computes keys, and goes on so when there is; if it began with keys, they must be made again."""
    settings, plain, model = opened(world, tmp_path)
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=50_000))
    events: list[Any] = []
    assert with_keys(plain, settings, model, InProcess(events.append)) is plain
    assert "computes keys" in events[0].text
    assert "50 kB" in events[0].text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert with_keys(plain, settings, model, InProcess(events.append)) is plain
    assert events[-1].text.endswith("it began without")

    settings, plain, model = opened(world, tmp_path, "--run.name=other")
    keyed = with_keys(plain, settings, model, InProcess(lambda _: None))
    assert keyed.train.queries is not None
    keyed.train.queries.folder.delete(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=50_000))
    with pytest.raises(ValueError, match=r"retrieval began with keys, which must be made again.*features\.folder"):
        with_keys(plain, settings, model, InProcess(lambda _: None))


def test_a_second_start_tokenises_no_captions(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete queries have recorded their sizes; those that are gone have not, nor have those of other captions."""
    settings, plain, model = opened(world, tmp_path)
    first = with_keys(plain, settings, model, InProcess(lambda _: None))
    asked: list[list[int]] = []
    sizes = keys._text_sizes
    monkeypatch.setattr(keys, "_text_sizes", lambda *given: asked.append(list(given[1])) or sizes(*given))
    again = with_keys(plain, settings, model, InProcess(lambda _: None))
    assert not asked
    assert again.train.samples == first.train.samples
    assert again.train.queries == first.train.queries
    assert first.val.queries is not None
    first.val.queries.folder.delete(".")
    assert with_keys(plain, settings, model, InProcess(lambda _: None)).val.samples == first.val.samples
    assert asked == [list(range(len(plain.val.dataset.groups)))]


def test_what_computes_them_is_named_in_their_keys(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, stage, model = opened(world, tmp_path)
    model.eval()
    named = named_code(monkeypatch, keys)
    key, folder = keys._queries_key(stage.train, model), Folder.at(tmp_path)
    for spec, encoder in (
        keys._keys(stage.train, settings, model),
        keys._queries(stage.train, folder, key, (5, 32), model),
    ):
        assert not unnamed(called(encoding(spec, encoder)), named)


@pytest.mark.thorough
def test_runs_end_the_same_on_two_ranks_and_after_a_stop(world: SmallWorld, tmp_path: Path) -> None:
    """With small steps, which do not amplify rounding: other processors round other queries."""
    words = world.settings(
        *("--relational.epochs=1", "--retrieval.epochs=6", "--retrieval.optimizer.lr=2e-4"), stages=BOTH
    )
    one = alone([*words, f"--run.storage={tmp_path}/one"])
    plain = alone([*words, f"--run.storage={tmp_path}/plain", "--features.keys=never"])
    told = [event.what for event in one if isinstance(event, FeaturesDone)]
    assert told[-4:] == MADE
    assert losses(one) == pytest.approx(losses(plain), rel=1e-3)
    ends = [[event.metrics["loss"] for event in events if isinstance(event, EpochDone)] for events in (one, plain)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)

    spawn(
        passes_on_a_rank,
        ([*words, f"--run.storage={tmp_path}/two", "--scaling.num_workers=2"], str(tmp_path)),
        nprocs=2,
    )
    told, found = json.loads((tmp_path / "found.json").read_text())
    assert told[-4:] == MADE
    assert found == pytest.approx(losses(one), rel=1e-3)

    seen: list[Any] = []

    def stop_in_retrieval(event: Any) -> None:
        seen.append(event)
        if isinstance(event, EpochDone) and event.stage == "retrieval":
            raise KeyboardInterrupt

    cut = preflight.check(config.load("demo", [*words, f"--run.storage={tmp_path}/cut"]))
    with pytest.raises(KeyboardInterrupt):
        progression.run_stages(cut, InProcess(stop_in_retrieval))
    rest = alone([*words, f"--run.storage={tmp_path}/cut"])
    steps = [event for event in rest if isinstance(event, StepDone)]
    assert losses(rest) == losses(one)[-len(steps) :]
    assert 0 < len(steps) < len(losses(one))
