"""A run that is killed anywhere, any number of times, ends with the weights of one that was not."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import OPTIMISED, SmallWorld
from safetensors.torch import load_file
from tiers import thorough

from groundray import config
from groundray.stage.grounding import GroundingStage
from groundray.storage.folder import Folder
from groundray.training import attempts, history, loop, preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.checkpointer import Checkpointer
from groundray.training.endings import Stopped
from groundray.training.events import Attempted, EpochDone, Event, Notice, Recovered, StageDone, StepDone
from groundray.training.non_finite import NotFinite
from groundray.training.worker import InProcess

OFTEN = ("--checkpoints.every_steps=3", "--run.log_samples=true")
STEPS = 9  # of an epoch


class Killed(BaseException):
    """Ends a run as a SIGKILL would: nothing in the package catches it."""


def train(words: list[str], observe: Callable[[Event], None] = lambda _: None, **hooks: Callable[[], str]) -> None:
    torch.set_num_threads(1)
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(observe, **hooks))


def weights(folder: Path) -> dict[str, bytes]:
    """The files of an exported model."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("model/**/*.safetensors"))}


def used(folder: Path) -> list[tuple[str, int, list[list[str]] | None]]:
    """Returns the samples of each step, from the history."""
    events = history.read(Folder.at(folder))
    return [(event.stage, event.step, samples) for event, samples in events if isinstance(event, StepDone)]


@pytest.fixture(scope="module")
def words(world: SmallWorld) -> list[str]:
    return world.settings(*OFTEN, "--language.epochs=1", stages="grounding,language")


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run that was not interrupted."""
    storage = tmp_path_factory.mktemp("whole")
    train([*words, f"--run.storage={storage}"])
    return storage / "demo"


@pytest.mark.thorough
def test_history_has_every_sample_once_per_epoch(whole: Path, world: SmallWorld) -> None:
    events = used(whole)
    assert [(stage, step) for stage, step, _ in events] == [
        *(("grounding", step) for step in range(1, 2 * STEPS + 1)),
        *(("language", step) for step in range(1, STEPS + 1)),
    ]
    for first in range(0, len(events), STEPS):
        ids = [one for _, _, samples in events[first : first + STEPS] for chunk in samples or [] for one in chunk]
        assert len(ids) == len(set(ids)) == (72 if events[first][0] == "grounding" else 360)
    assert all(len(samples or []) == 2 for _, _, samples in events)  # chunks


def kill_at(place: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kill the run when it reaches a place for the `count`th time."""
    seen = [0]

    def killing(owner: object, name: str, after: bool = False) -> None:
        real = getattr(owner, name)

        def instead(*args: object, **kwargs: object) -> object:
            seen[0] += 1
            if after:
                real(*args, **kwargs)
            if seen[0] == count:
                raise Killed
            return None if after else real(*args, **kwargs)

        monkeypatch.setattr(owner, name, instead)

    match place:
        case "mid-step":
            killing(loop.GradientSums, "finish")
        case "write":
            killing(Folder, "write_json")  # of a manifest, an attempt, a finished stage: all comes to this
        case "validation":
            killing(GroundingStage, "validate")
        case "epoch's edge":
            killing(Checkpointer, "validation_done", after=True)
        case "stage's edge":
            killing(CheckpointStore, "mark_finished", after=True)
        case "deletion":
            killing(Folder, "delete")
        case "ended":
            killing(CheckpointStore, "mark_finished")


@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("mid-step", 10),
        *(thorough("mid-step", count) for count in (1, 5, 9, 17, 20)),
        *(thorough("write", count) for count in (2, 3, 4, 7, 9)),
        *(thorough("validation", count) for count in (1, 2)),
        *(thorough("epoch's edge", count) for count in (1, 2, 3)),
        *(thorough("stage's edge", count) for count in (1, 2)),
    ],
)
def test_resume_after_a_kill_gives_equal_weights_and_samples(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    kill_at(place, count, monkeypatch)
    resume_killed(words, whole, tmp_path, monkeypatch)


def resume_killed(words: list[str], whole: Path, storage: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Run until `kill_at` kills it, resume it, and compare weights and samples with those of a whole run.

    Returns the events after the kill.
    """
    words, events = [*words, f"--run.storage={storage}"], list[Event]()
    with pytest.raises(Killed):
        train(words)
    monkeypatch.undo()
    train(words, events.append)
    assert weights(storage / "demo") == weights(whole)
    assert used(storage / "demo") == used(whole)
    return events


@pytest.fixture(scope="module")
def optimised(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Returns the arguments of a run with AdamW, a cosine, an average and adapters, and the folder of a whole one.

    The next stage trains the language stream into which the adapters were merged.
    """
    storage, mine = tmp_path_factory.mktemp("optimised"), [*words, *OPTIMISED]
    train([*mine, f"--run.storage={storage}"])
    return mine, storage / "demo"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("place", "count"),
    [
        *(("mid-step", count) for count in (2, 8, 14, 20)),
        *((place, 1) for place in ("validation", "epoch's edge", "stage's edge")),
    ],
)
def test_resume_within_a_schedule_an_average_and_adapters_gives_equal_weights(
    optimised: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    words, whole = optimised
    kill_at(place, count, monkeypatch)
    resume_killed(words, whole, tmp_path, monkeypatch)
    assert rates(tmp_path / "demo") == rates(whole)


def rates(folder: Path) -> list[float]:
    events = history.read(Folder.at(folder))
    return [event.metrics["learning_rate"] for event, _ in events if isinstance(event, StepDone)]


@pytest.mark.thorough
def test_stop_within_a_validation_of_averages_keeps_the_weights(
    optimised: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written while the averages are in the model."""
    words, whole = [*optimised[0], f"--run.storage={tmp_path}", "--checkpoints.every_steps=1000"], optimised[1]
    done = [0]

    def observe(event: Event) -> None:
        done[0] += isinstance(event, StepDone)

    real = Checkpointer.step_done
    monkeypatch.setattr(Checkpointer, "step_done", lambda *args: without_stopping(real, *args))
    with pytest.raises(Stopped, match="preempted"):
        train(words, observe, get_stop_reason=lambda: "preempted" if done[0] == STEPS else "")
    monkeypatch.undo()
    train(words)
    assert weights(tmp_path / "demo") == weights(whole)


def test_a_stage_starts_from_the_merged_averages_of_the_one_before(optimised: tuple[list[str], Path]) -> None:
    """The exported stream after grounding has plain names, and differs from the start in adapted maps alone."""
    folder = optimised[1] / "model"
    before, after = (
        load_file(folder / f"language-{name}" / "model.safetensors") for name in ("ungrounded", "grounded")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name.rpartition(".")[2] for name in changed} == {"weight"}
    assert len(changed) == 2 * 6  # query, key, value, and three maps called dense, in two layers


@pytest.mark.thorough
def test_resume_after_up_to_thirty_kills_gives_equal_weights_and_samples(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    """The run is killed after 1 to 5 events, drawn at random, at most thirty times."""
    mine, chance, kills = [*words, f"--run.storage={tmp_path}"], random.Random(5), 0
    while kills < 30:
        left = chance.randint(1, 5)

        def killing(event: Event) -> None:
            nonlocal left
            left -= isinstance(event, StepDone | EpochDone | StageDone)
            if left == 0:
                raise Killed

        try:
            train(mine, killing)
        except Killed:
            kills += 1
            continue
        break
    train(mine)
    assert kills > 5
    assert weights(tmp_path / "demo") == weights(whole)
    assert used(tmp_path / "demo") == used(whole)
    assert len(attempts.begun(Folder.at(tmp_path / "demo"))) == kills + 1 + (kills < 30)


@pytest.mark.thorough
@pytest.mark.parametrize("place", ["step", "validation"])
def test_stop_request_writes_a_checkpoint_and_no_step_is_repeated(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    mine = [*words, f"--run.storage={tmp_path}", "--checkpoints.every_steps=1000"]
    events: list[Event] = []

    def stop_reason() -> str:
        steps = sum(isinstance(event, StepDone) for event in events)
        return "preempted" if steps == 5 or (steps == STEPS and place == "validation") else ""

    real = Checkpointer.step_done
    if place == "validation":
        monkeypatch.setattr(Checkpointer, "step_done", lambda *args: without_stopping(real, *args))
    with pytest.raises(Stopped, match="preempted"):
        train(mine, events.append, get_stop_reason=stop_reason)
    monkeypatch.undo()
    rest: list[Event] = []
    train(mine, rest.append)
    (attempt,) = (event for event in rest if isinstance(event, Attempted))
    done = 5 if place == "step" else STEPS
    assert attempt == Attempted(2, "grounding", done, "preempted", 0, pytest.approx(0, abs=1), 1)
    assert next(event.step for event in rest if isinstance(event, StepDone)) == done + 1
    assert len([event for event in rest if isinstance(event, Recovered)]) == 1
    assert weights(tmp_path / "demo") == weights(whole)


def without_stopping(step_done: Callable[..., None], checkpointer: Checkpointer, *args: object) -> None:
    """Do a step without asking whether to stop: the request arrives in the validation after it."""
    worker = checkpointer.worker
    checkpointer.worker = InProcess(worker.emit)
    step_done(checkpointer, *args)
    checkpointer.worker = worker


@pytest.mark.thorough
def test_resume_past_a_damaged_checkpoint_gives_equal_weights(words: list[str], whole: Path, tmp_path: Path) -> None:
    mine = [*words, f"--run.storage={tmp_path}"]
    steps = [0]

    def killing(event: Event) -> None:
        steps[0] += isinstance(event, StepDone)
        if steps[0] == 17:
            raise Killed

    with pytest.raises(Killed):
        train(mine, killing)
    store = CheckpointStore.at(Folder.at(tmp_path / "demo"))
    last = store.last("grounding")
    assert last is not None
    file = tmp_path / "demo" / "checkpoints" / last.name / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    events: list[Event] = []
    train(mine, events.append)
    (warning,) = (event.text for event in events if isinstance(event, Notice))
    assert last.name in warning
    assert "optimizer.safetensors: it has" in warning
    assert weights(tmp_path / "demo") == weights(whole)
    assert used(tmp_path / "demo") == used(whole)


HISTORY_DAMAGES = {
    "no JSON": (lambda text: text.replace(b'"step": 5', b'"step": x', 1), [5]),
    "another number": (lambda text: text.replace(b'"step": 5', b'"step": 4', 1), [5]),
    "a line less": (lambda text: text[text.index(b"\n") + 1 :], [4]),
    "cut off between lines": (lambda text: text[: text.index(b"\n") + 1], [5, 6]),
    "emptied": (lambda text: b"", [4, 5, 6]),
    "the seal's key misspelt": (lambda text: text.replace(b"crc32", b"crc33", 1), [4]),
    "seal and number lost": (lambda text: text.replace(b"crc32", b"crc33", 1).replace(b'"line"', b'"lime"', 1), [4]),
}


@pytest.mark.parametrize("damage", HISTORY_DAMAGES)
def test_damaged_history_line_is_skipped_with_a_warning(whole: Path, tmp_path: Path, damage: str) -> None:
    change, lost = HISTORY_DAMAGES[damage]
    folder = Folder.at(shutil.copytree(whole, tmp_path / "run"))
    name = next(name for name in (folder / "history").names() if name.startswith("grounding-00000-000006"))
    content = (folder / "history").read_bytes(name)
    (folder / "history").write_bytes(name, change(content))
    (folder / "history").write_bytes(f"{name}.ab12cd34.writing", content[:100])  # of a process that was killed
    warnings: list[str] = []
    steps = [event.step for event, _ in history.read(folder, warnings.append) if isinstance(event, StepDone)]
    assert steps == [*(step for step in range(1, 19) if step not in lost), *range(1, 10)]
    (warning,) = warnings
    how_many = "it is empty" if damage == "emptied" else f"{len(lost)} of its"
    assert f"{folder}/history/{name} is damaged: {how_many}" in warning


def test_history_of_an_earlier_version_is_read(whole: Path, tmp_path: Path) -> None:
    """Its lines have no checksum."""
    folder = Folder.at(shutil.copytree(whole, tmp_path / "run"))
    expected = list(history.read(folder, pytest.fail))
    for name in (folder / "history").names():
        records = map(json.loads, (folder / "history").read_bytes(name).splitlines())
        lines = [{key: value for key, value in one.items() if key not in ("line", "crc32")} for one in records]
        (folder / "history").write_bytes(name, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    assert list(history.read(folder, pytest.fail)) == expected


@pytest.mark.thorough
def test_steps_count_although_the_note_of_their_attempt_is_damaged_later(
    words: list[str], whole: Path, tmp_path: Path
) -> None:
    mine = [*words, f"--run.storage={tmp_path}"]

    def killing_after(steps: int) -> Callable[[Event], None]:
        left = [steps]

        def killing(event: Event) -> None:
            left[0] -= isinstance(event, StepDone)
            if left[0] == 0:
                raise Killed

        return killing

    for steps in (8, 8, 2):
        with pytest.raises(Killed):
            train(mine, killing_after(steps))
    (name,) = (file.name for file in (tmp_path / "demo" / "attempts").glob("0002-*-from.json"))
    (tmp_path / "demo" / "attempts" / name).write_bytes(b"{")
    events: list[Event] = []
    train(mine, events.append)
    (warning,) = (event.text for event in events if isinstance(event, Notice))
    assert name in warning
    assert used(tmp_path / "demo") == used(whole)
    assert weights(tmp_path / "demo") == weights(whole)


def test_finished_run_exports_its_model_only_if_it_is_missing(words: list[str], whole: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(whole, storage / "demo")
    before = {path: path.stat().st_mtime_ns for path in (storage / "demo" / "model").rglob("*.safetensors")}
    train([*words, f"--run.storage={storage}"])
    assert {path: path.stat().st_mtime_ns for path in (storage / "demo" / "model").rglob("*.safetensors")} == before
    shutil.rmtree(storage / "demo" / "model")
    train([*words, f"--run.storage={storage}"])
    assert weights(storage / "demo") == weights(whole)


def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the loss of a step NaN."""
    real, seen = GroundingStage.loss, [0]

    def poisoned(stage: GroundingStage, encoded: list[object]) -> object:
        loss, metrics = real(stage, encoded)
        seen[0] += 1
        return (loss * math.nan if seen[0] == step else loss), metrics

    monkeypatch.setattr(GroundingStage, "loss", poisoned)


def test_nan_loss_stops_the_run_and_names_its_samples(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [*words, f"--run.storage={tmp_path}"]
    with monkeypatch.context() as patches:
        poison(patches, 5)
        with pytest.raises(
            NotFinite, match=r"grounding, epoch 1, step 5 .*loss nan.*not_finite/grounding-00000-000004\.json"
        ):
            train(mine)
    saved = Folder.at(tmp_path / "demo" / "not_finite").read_json("grounding-00000-000004.json")
    assert saved["loss"] == "nan"
    assert ("grounding", 5, saved["samples"]) in used(whole)
    train(mine)  # the loss of the same step is finite now
    assert weights(tmp_path / "demo") == weights(whole)


@pytest.mark.thorough
def test_nan_loss_is_skipped_and_counted_with_on_nan_skip(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 5)
    events: list[Event] = []
    train([*words, f"--run.storage={tmp_path}", "--run.on_nan=skip"], events.append)
    (notice,) = (event.text for event in events if isinstance(event, Notice))
    assert "grounding, epoch 1, step 5" in notice
    steps = [event for event in events if isinstance(event, StepDone) and event.stage == "grounding"]
    assert [event.metrics.get("skipped_steps") for event in steps] == [None] * 4 + [1.0] * 14
    assert all(math.isfinite(event.metrics["loss"]) for event in steps if event.step != 5)
    result = Folder.at(tmp_path / "demo").read_json("result.json")
    assert result["stages"]["grounding"]["skipped_steps"] == 1.0
