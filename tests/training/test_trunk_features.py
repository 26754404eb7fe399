"""Trunk features: what is frozen is computed once, and nothing else changes."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import own_time
import pytest
import torch
from conftest import CALM, STAGES, SmallWorld
from test_workers import alone, losses, passes_on_a_rank
from torch.multiprocessing.spawn import spawn

from groundray import config
from groundray.config import Settings
from groundray.data import derived
from groundray.data.derived import finalize, make_parts, missing_parts, open_derived, parts_of, tasks
from groundray.data.plan import Cursor
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.stream import stream
from groundray.model.grounded import GroundedModel
from groundray.stage.protocol import Stage
from groundray.storage.folder import Folder
from groundray.training import preflight, progression, trunk_features
from groundray.training.events import EpochDone, FeaturesDone, FeaturesStarted, StepDone
from groundray.training.trunk_features import TrunkFeatures, features_of, refusal, with_features
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs with every way of keeping a trunk's features

BITS: dict[str, Any] = {
    "rtol": 2**-7,
    "atol": 1e-4,
}  # of bfloat16: a sum's last bits depend on how many images go together
FROZEN = "--grounding.trains.trunk=false"


def opened(world: SmallWorld, storage: Path, *words: str, stages: str = "grounding") -> tuple[Settings, list[Stage]]:
    settings = config.load("demo", world.settings(FROZEN, f"--run.storage={storage}", *words, stages=stages))
    return settings, list(preflight.check(settings).stages)


def wanted(world: SmallWorld, storage: Path, *words: str) -> tuple[TrunkFeatures, GroundedModel, Settings, Stage]:
    """The pass over the training captions."""
    settings, (stage,) = opened(world, storage, *words)
    model, _ = progression.initial_model(settings)
    return features_of(stage, settings, model.visual.trunk)["train"], model, settings, stage


def make_all(features: TrunkFeatures, model: GroundedModel) -> Dataset:
    encoder = features.encoder(model.visual.trunk, "cpu")
    for group, names in tasks(features.spec, workers=2):
        make_parts(features.spec, group, names, encoder)
    return finalize(features.spec)


def test_a_stage_reads_what_the_trunk_makes_of_its_pictures(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample by sample in the plan's order, with the same captions; in several parts a row group."""
    monkeypatch.setattr(derived, "PART_BYTES", 60_000)
    _, model, settings, stage = wanted(world, tmp_path)
    events: list[Any] = []
    cached = with_features(stage, settings, model.visual.trunk, InProcess(events.append))
    assert [type(event) for event in events] == [FeaturesStarted, FeaturesDone] * 2
    assert (events[0].images, events[0].missing, events[0].bytes) == (72, 72, 72 * 160 * 7 * 7 * 2)
    for source, plain in ((cached.train, stage.train), (cached.val, stage.val)):
        for step, other in zip(stream(source, Cursor(), 2), stream(plain, Cursor(), 2), strict=True):
            for (_, batch), (_, pixels) in zip(step.chunks, other.chunks, strict=True):
                assert batch.ids == pixels.ids
                assert torch.equal(batch.tokens, pixels.tokens)
                if len(batch):
                    expected = model.visual.features(pixels.images).bfloat16()
                    torch.testing.assert_close(batch.images, expected, **BITS)
                    embedded = model.visual.eval()(batch.images), model.visual(pixels.images)
                    torch.testing.assert_close(*embedded, rtol=0, atol=0.05)
                    blank = batch.without_images(model.visual.blank).images
                    its = pixels.without_images(model.visual.blank).images
                    assert torch.equal(its, its[:1].expand_as(its))
                    one = model.visual.features(its[:1]).bfloat16()  # made alone, since rounding is normalised too
                    torch.testing.assert_close(blank, one.expand_as(blank), **BITS)


def test_features_of_a_timm_trunk_have_its_shape_and_its_name_in_their_key(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ResNet-18 gives three positions a side of 72 pixels, rounded up."""
    pytest.importorskip("timm", reason="extra `models` is not installed")
    words = ("--model.trunk.name=timm/resnet18", "--model.image_size=72")
    features, model, settings, stage = wanted(world, tmp_path, *words)
    assert features.shape == (512, 3, 3)
    cached = with_features(stage, settings, model.visual.trunk, InProcess(lambda _: None))
    (_, batch), *_ = next(stream(cached.train, Cursor(), 1)).chunks
    assert batch.images.shape[1:] == (512, 3, 3)
    monkeypatch.setattr(model.visual.trunk, "origin", {"timm": "another", "name": "resnet18"})
    assert features_of(stage, settings, model.visual.trunk)["train"].spec.key != features.spec.key


def test_the_loss_is_the_same_within_bfloat16(world: SmallWorld, tmp_path: Path) -> None:
    """Seven bits of a number remain; nothing is random about what they do, so steps and epochs stay close."""
    words = [*world.settings(FROZEN, *CALM, "--grounding.dropout=0.3"), f"--run.storage={tmp_path}"]
    cached = alone([*words, "--run.name=cached"])
    plain = alone([*words, "--run.name=plain", "--features.use=never"])
    assert sum(isinstance(event, FeaturesDone) for event in cached) == 2
    assert not any(isinstance(event, FeaturesDone | FeaturesStarted) for event in plain)
    assert losses(cached)[0] != losses(plain)[0]
    assert losses(cached) == pytest.approx(losses(plain), rel=0.01)
    ends = [[event.metrics["loss"] for event in events if isinstance(event, EpochDone)] for events in (cached, plain)]
    assert ends[0] == pytest.approx(ends[1], rel=0.01)

    again = alone([*words, "--run.name=again"])  # runs that need the same features share them
    assert not any(isinstance(event, FeaturesStarted) for event in again)
    assert losses(again) == losses(cached)


def test_a_trunk_that_an_earlier_stage_trained_has_features_of_its_own(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--grounding.epochs=1", stages="grounding,relational,retrieval")
    events = alone([*words, "--relational.trains.trunk=false", "--features.keys=never"])
    told = [event.what for event in events if isinstance(event, FeaturesStarted)]
    assert told == ["relational.train", "relational.val", "retrieval.train", "retrieval.val"]


@pytest.mark.parametrize(
    ("stage", "words", "reason"),
    [
        ("grounding", ["--features.use=never"], "features.use is never"),
        ("grounding", ["--grounding.trains.trunk=true"], "it trains the trunk"),
        ("grounding", ["--grounding.precision=float64"], "float64 is finer"),
        ("grounding", ["--grounding.epochs=1"], "it visits each image once"),
        ("visual", ["--visual.trains.trunk=false"], "cropped at random"),
        ("language", [], "it sees no images"),
        ("grounding", [], None),
        ("retrieval", [], None),
    ],
)
def test_features_are_used_only_where_exact(
    world: SmallWorld, tmp_path: Path, stage: str, words: list[str], reason: str | None
) -> None:
    settings, stages = opened(world, tmp_path, *words, stages=STAGES)
    (one,) = [one for one in stages if one.name == stage]
    found = refusal(one, settings)
    assert (found is None) if reason is None else (found is not None and reason in found)
    trunk = progression.initial_model(settings)[0].visual.trunk
    assert set(features_of(one, settings, trunk)) == (set() if reason else {"train", "val"})


def test_features_key_covers_all_that_features_depend_on(world: SmallWorld, tmp_path: Path) -> None:
    features, model, settings, stage = wanted(world, tmp_path)
    keys = {features.spec.folder.name}
    for words in (["--grounding.resize=130"], ["--run.seed=3"], [f"--grounding.train={world.shards}/captions/val"]):
        keys.add(wanted(world, tmp_path, *words)[0].spec.folder.name)
    with torch.no_grad():
        next(model.visual.trunk.parameters())[0, 0, 0, 0] += 1e-3
    keys.add(features_of(stage, settings, model.visual.trunk)["train"].spec.folder.name)
    model.visual.trunk.mean += 1  # pixels are normalised otherwise
    keys.add(features_of(stage, settings, model.visual.trunk)["train"].spec.folder.name)
    assert len(keys) == 6
    same = ("--grounding.temperature=3", "--grounding.batch_size=12", "--grounding.epochs=9", "--data.window=8")
    assert wanted(world, tmp_path, *same)[0].spec.folder == features.spec.folder
    elsewhere, *_ = wanted(world, tmp_path, f"--features.folder={tmp_path}/elsewhere")
    assert elsewhere.spec.folder.path == f"{tmp_path}/elsewhere/{features.spec.folder.name}"


def contents(features: TrunkFeatures) -> dict[str, bytes]:
    """Return the content of each part and of the index."""
    folder = features.spec.folder
    return {name: folder.read_bytes(name) for name in folder.sizes()}


def test_an_interrupted_pass_goes_on(world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "PART_BYTES", 60_000)
    features, model, *_ = wanted(world, tmp_path)
    whole = make_all(features, model)
    files = contents(features)
    assert len(whole.shards) > len(features.spec.groups)  # several parts a group
    lost = [whole.shards[place].file for place in (1, -1)]
    for name in (*lost, "dataset.json"):
        features.spec.folder.delete(name)
    assert open_derived(features.spec) is None
    assert sorted(name for names in missing_parts(features.spec).values() for name in names) == sorted(lost)
    calls: list[int] = []
    plain = trunk_features.feature_maps

    def counted(trunk: Any, images: Any, device: str) -> Any:
        calls.append(len(images))
        return plain(trunk, images, device)

    monkeypatch.setattr(trunk_features, "feature_maps", counted)
    again = make_all(features, model)
    assert sum(calls) == sum(sum(shard.row_groups) for shard in again.shards if shard.file in lost)
    assert contents(features) == files


def test_two_passes_at_once_make_the_same(world: SmallWorld, tmp_path: Path) -> None:
    features, model, *_ = wanted(world, tmp_path / "alone")
    expected = make_all(features, model)
    shared, *_ = wanted(world, tmp_path / "shared")
    threads = [threading.Thread(target=make_all, args=(shared, model)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = open_derived(shared.spec)
    assert found is not None
    assert found.fingerprint == expected.fingerprint
    assert not [name for name in shared.spec.folder.names() if name.endswith(".writing")]


def test_work_is_cut_for_few_row_groups_and_many_workers(world: SmallWorld, tmp_path: Path) -> None:
    features, *_ = wanted(world, tmp_path)
    spec = replace(features.spec, source=large(features.spec.source, 1000, 7))
    parts = [name for group in spec.groups for name in parts_of(spec, group)]
    for workers in (1, 2, 50):
        work = tasks(spec, workers)
        assert [name for _, names in work for name in names] == parts
        assert len(work) >= min(4 * workers, len(parts))
    rows = [row for group in spec.groups for rows in parts_of(spec, group).values() for row in rows]
    assert rows == [*range(1000), *range(7)]


def test_a_rank_that_comes_late_makes_its_share(world: SmallWorld, tmp_path: Path) -> None:
    features, model, *_ = wanted(world, tmp_path)
    for rank in (0, 1, 2):
        for group, names in tasks(features.spec, 3)[rank::3]:
            assert make_parts(features.spec, group, names, features.encoder(model.visual.trunk, "cpu")) > 0
    assert missing_parts(features.spec) == {}


def test_hashing_the_features_is_progress(world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without seals they may be hundreds of GB, read by rank 0 while the others wait: no watchdog may end either."""
    monkeypatch.setattr(derived, "PART_BYTES", 60_000)
    features, model, settings, stage = wanted(world, tmp_path)
    parts = len(make_all(features, model).shards)
    features.spec.folder.delete("dataset.json")
    features.spec.folder.delete("seals")
    seen: list[str] = []
    seal = Folder.seal
    monkeypatch.setattr(Folder, "seal", lambda *words: seen.append("read") or seal(*words))
    worker = InProcess(lambda _: None, on_heartbeat=lambda: seen.append("heartbeat"))
    with_features(stage, settings, model.visual.trunk, worker)
    assert parts > 2
    assert seen[seen.index("read") :].count("heartbeat") >= parts

    features.spec.folder.delete("dataset.json")
    seen.clear()

    def waits() -> None:
        seen.append("heartbeat")
        if seen.count("heartbeat") == 3:
            finalize(features.spec)  # rank 0 has read all

    def polls(_: float) -> None:
        assert seen.count("poll") < 5, "a rank that waits gives no heartbeat"
        seen.append("poll")

    own_time.give(monkeypatch, trunk_features, sleep=polls)
    waiting = InProcess(lambda _: None, rank=1, world_size=2, on_heartbeat=waits)
    trunk_features._finalized(features.spec, waiting, waiting.heartbeat)


def large(dataset: Dataset, *groups: int) -> Dataset:
    """The data set, as if it had row groups of so many rows."""
    return replace(dataset, shards=(replace(dataset.shards[0], row_groups=groups),))


@pytest.mark.parametrize("lack", ["room", "limit"])
def test_a_stage_whose_features_do_not_fit_reads_images(
    world: SmallWorld, tmp_path: Path, lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so with both sizes, and goes on with images when there is room."""
    _, model, settings, stage = wanted(world, tmp_path)
    disk = shutil.disk_usage(tmp_path)
    little = settings.model_copy(update={"features": settings.features.model_copy(update={"max_gb": 5e-5})})
    if lack == "room":
        little = settings
        monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=50_000))
    events: list[Any] = []
    worker = InProcess(events.append)
    assert with_features(stage, little, model.visual.trunk, worker) is stage
    (note,) = events
    assert note.text.startswith("grounding reads images, not trunk features: they take 1.44 MB")
    assert "50 kB" in note.text
    assert ("features.max_gb" in note.text) == (lack == "limit")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    assert with_features(stage, settings, model.visual.trunk, worker) is stage
    assert events[1].text.endswith("it began with images")
    assert not list((tmp_path / ".features").rglob("*.parquet"))


def test_a_stage_that_began_with_features_never_goes_on_with_images(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, model, settings, stage = wanted(world, tmp_path)
    assert with_features(stage, settings, model.visual.trunk, InProcess(lambda _: None)) is not stage
    features.spec.folder.delete(".")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=50_000))
    with pytest.raises(ValueError, match=r"began with trunk features.*1\.13 MB more.*50 kB.*features\.folder"):
        with_features(stage, settings, model.visual.trunk, InProcess(lambda _: None))


def test_a_damaged_part_is_named_with_its_repair(world: SmallWorld, tmp_path: Path) -> None:
    features, model, *_ = wanted(world, tmp_path)
    made = make_all(features, model)
    file = Path(features.spec.folder.path, made.shards[0].file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00000-000\.parquet.*delete it, and the run"):
        read_rows(made, np.arange(made.rows), ["image"])


def test_ranks_make_them_together(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(FROZEN, "--data.window=24")
    one = alone([*words, f"--run.storage={tmp_path}/one"])
    spawn(
        passes_on_a_rank,
        ([*words, f"--run.storage={tmp_path}/two", "--scaling.num_workers=2"], str(tmp_path)),
        nprocs=2,
    )
    told, found = json.loads((tmp_path / "found.json").read_text())
    assert told == ["grounding.train", "grounding.val"]
    assert found == pytest.approx(losses(one), rel=1e-4)
    assert len(found) == sum(isinstance(event, StepDone) for event in one)
