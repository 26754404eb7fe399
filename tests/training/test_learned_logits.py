"""A learned temperature and bias through a run: checkpoints, exports, and models that other runs start from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SmallWorld

from groundray import config
from groundray.analysis.systems import measure_retrieval
from groundray.data.batches import CaptionBatch
from groundray.image_search.explain import GroundingMatcher
from groundray.model import export
from groundray.model.heads import GroundingHeads
from groundray.stage.contrastive import encode_for_match_map, pooled
from groundray.storage.folder import Folder
from groundray.training import preflight, progression
from groundray.training.events import EpochDone, Event, StageStarted, StepDone
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs, of one setting

POOLED_SIGMOID = ("--grounding.alignment=pooled", "--grounding.loss=sigmoid", "--grounding.temperature=0.1")


def train(words: list[str]) -> list[Event]:
    events: list[Event] = []
    torch.set_num_threads(1)
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(events.append))
    return events


def steps(events: list[Event]) -> list[dict[str, float]]:
    kept = ("loss", "temperature", "bias")
    metrics = [event.metrics for event in events if isinstance(event, StepDone)]
    return [{name: value for name, value in step.items() if name in kept} for step in metrics]


@pytest.fixture(scope="module")
def whole(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """The folder and the events of a run with pooled vectors and the sigmoid loss."""
    storage = tmp_path_factory.mktemp("whole")
    return storage / "demo", train(world.settings(*POOLED_SIGMOID, f"--run.storage={storage}"))


@pytest.mark.parametrize("accumulate", ["false", "true"])
def test_a_run_killed_within_an_epoch_ends_with_equal_weights(
    world: SmallWorld, whole: tuple[Path, list[Event]], tmp_path: Path, accumulate: str
) -> None:
    more = (f"--run.storage={tmp_path}", "--checkpoints.every_steps=2", f"--scaling.accumulate={accumulate}")
    words = world.settings(*POOLED_SIGMOID, *more)

    class Killed(Exception):
        pass

    def kill_in_the_second_epoch(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 14:
            raise Killed

    settings = config.load("demo", words)
    with pytest.raises(Killed):
        progression.run_stages(preflight.check(settings), InProcess(kill_in_the_second_epoch))
    rest = train(words)
    (started,) = (event for event in rest if isinstance(event, StageStarted))
    assert 9 < started.step < 14  # within the second epoch
    folder, events = whole
    assert steps(rest) == steps(events)[started.step :]
    for file in ("grounding-head", "visual"):
        place = Path("model", "stages", "grounding", f"{file}.safetensors")
        assert (tmp_path / "demo" / place).read_bytes() == (folder / place).read_bytes()


def test_what_is_learned_moves_is_reported_and_is_exported(whole: tuple[Path, list[Event]]) -> None:
    folder, events = whole
    reported = steps(events)
    assert reported[0] == {"loss": reported[0]["loss"], "temperature": pytest.approx(0.1), "bias": -10.0}
    assert reported[-1]["temperature"] != reported[0]["temperature"]
    assert reported[-1]["bias"] > -10  # there are more matches than one in 20,000
    logits = export.load(folder / "model").model.head(GroundingHeads).logits
    assert logits.log_scale is not None
    assert logits.bias is not None
    epochs = [event for event in events if isinstance(event, EpochDone)]
    best = min(range(2), key=lambda epoch: epochs[epoch].metrics["loss"])
    following = [*reported, None][9 * (best + 1)]
    if following is not None:  # the first step after the best epoch sees the values that are kept
        assert logits.bias.item() == following["bias"]
        assert torch.exp(-logits.log_scale).item() == pytest.approx(following["temperature"])


def test_pooled_vectors_rank_in_validation_and_analysis_alike(whole: tuple[Path, list[Event]]) -> None:
    folder, _ = whole
    told = json.loads((folder / "result.json").read_text())["stages"]["grounding"]
    (found,) = measure_retrieval(str(folder / "model"), None, 8).values()
    assert found.how == "pooled vectors"
    assert found.metrics == {name: pytest.approx(told[name]) for name in found.metrics}


def test_the_maps_of_a_pooled_model_are_cosines_and_its_similarity_that_of_the_vectors(
    world: SmallWorld, whole: tuple[Path, list[Event]]
) -> None:
    matcher = GroundingMatcher.load(str(whole[0] / "model"))
    assert matcher is not None
    picture = next((world.source / "coco" / "val").iterdir()).read_bytes()
    match = matcher.match("a red circle", matcher.decode(picture))
    assert all(np.abs(word.map).max() <= 1 + 1e-6 for word in match.words)
    maps = dataclasses.replace(matcher, alignment="match_map").match("a red circle", matcher.decode(picture))
    assert all(np.array_equal(a.map, b.map) for a, b in zip(match.words, maps.words, strict=True))
    assert match.similarity != maps.similarity
    ids, lengths = matcher.tokenizer.encode(["a red circle"])
    batch = CaptionBatch.of([""], matcher.decode(picture).pixels[None], ids, lengths)
    with torch.no_grad():
        vectors = pooled(encode_for_match_map(matcher.model, batch, matcher.special_tokens))
    assert match.similarity == pytest.approx((vectors.V[0, 0] @ vectors.W[0, 0]).item(), abs=1e-6)


def test_a_stage_starts_with_what_a_model_has_learned_or_learns_anew(
    world: SmallWorld, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    """Also from a model without it, as of an earlier version, whose settings do not name the objective."""
    learned = export.load(whole[0] / "model").model.head(GroundingHeads).logits
    assert learned.bias is not None

    def first(name: str, start: Path, *words: str) -> dict[str, float]:
        more = (f"--run.storage={tmp_path}", f"--run.name={name}", f"--run.start_from={start}", "--grounding.epochs=1")
        return steps(train(world.settings(*more, *words)))[0]

    assert first("on", whole[0] / "model", *POOLED_SIGMOID)["bias"] == learned.bias.item()
    assert first("anew", whole[0] / "model", *POOLED_SIGMOID, "--grounding.new_head=true")["bias"] == -10
    assert set(first("without", whole[0] / "model")) == {"loss"}

    old = tmp_path / "old"
    shutil.copytree(tmp_path / "without" / "model", old)
    about = json.loads((old / "groundray.json").read_text())
    for name in ("alignment", "loss", "learn_temperature"):
        del about["settings"]["grounding"][name]
    Folder.at(old).write_sealed("groundray.json", about)
    assert first("old", old, *POOLED_SIGMOID)["bias"] == -10
    assert first("clip", old, "--grounding.learn_temperature=true")["temperature"] == pytest.approx(0.05)
