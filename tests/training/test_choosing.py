"""Which validation of a stage is its best, when a stage ends early, and that kills change neither."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import SmallWorld
from hypothesis import example, given
from hypothesis import strategies as st
from test_recovery import Killed, kill_at, resume_killed, train, weights
from tiers import thorough

from groundray import config
from groundray.config import SettingsError
from groundray.data.plan import Cursor
from groundray.data.stream import Step
from groundray.stage.protocol import Best
from groundray.storage.folder import Folder
from groundray.training import history, preflight
from groundray.training.checkpoint import MANIFEST, Checkpoint, CheckpointStore
from groundray.training.disk_usage import find_items
from groundray.training.events import EpochDone, Event, StageDone, StageStarted, StepDone
from groundray.training.layout import read_result
from groundray.training.recovery import Start
from groundray.training.train_state import TrainState

STEPS = 9  # of an epoch of the small world


@dataclass
class Disk:
    """The checkpoints of a pretended run, newest last, and what its validations were."""

    attempt: int = 0
    written: list[Checkpoint] = field(default_factory=list)
    validated: dict[int, float] = field(default_factory=dict)

    def name(self, stage: str, cursor: Cursor) -> str:
        return f"{stage}-{cursor.epoch}-{cursor.step}-a{self.attempt}"

    def get(self, name: str) -> Checkpoint:
        return next(one for one in self.written if one.name == name)

    def load(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """A stage whose scores are given, one for each validation that it could have."""

    scores: list[float]
    steps: int
    epochs: int
    every: int | None
    patience: int | None
    keep_every: int | None

    def attempt(self, disk: Disk, kill_after: int | None) -> TrainState:
        """Train from the last checkpoint as `train_stage` does. Killed after so many moments, if a number is given."""
        stage: Any = SimpleNamespace(
            name="grounding",
            best=Best("loss", "min"),
            settings=SimpleNamespace(
                best=None, patience=self.patience, validate_every_steps=self.every, epochs=self.epochs
            ),
            train=SimpleNamespace(plan=SimpleNamespace(steps=self.steps)),
        )
        left = [kill_after]

        def moment() -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

        disk.attempt += 1
        store = cast(CheckpointStore, disk)
        state = TrainState(stage, cast(Any, None), cast(Any, None))
        if disk.written:
            last = disk.written[-1].name
            state.restore(store, Start(disk.attempt, "", (), "grounding", last, 0, 0, 0, 0.0))

        def save() -> None:
            moment()
            described = json.loads(json.dumps(asdict(state.checkpoint(store, self.keep_every))))
            disk.written.append(Checkpoint(**{**described, "cursor": Cursor(**described["cursor"])}))
            moment()

        def validate_if_due() -> None:
            if state.validation_is_due:
                moment()
                number, at = state.validations - 1, state.done
                assert disk.validated.setdefault(at, self.scores[number]) == self.scores[number]
                state.validation_done({"loss": self.scores[number]}, store)
                save()

        validate_if_due()
        while not state.has_ended:
            cursor = state.cursor
            moment()
            state.step_done(Step(cursor.epoch, cursor.step, cursor.step == self.steps - 1, ()))
            if not state.validation_is_due and state.done % 2 == 0:
                save()
            validate_if_due()
        return state

    def expected(self) -> tuple[list[int], int | None, int, list[int]]:
        """The naive twin: the steps of validations, the best one's, the last step, and the validations to keep."""
        points = [
            step
            for step in range(1, self.steps * self.epochs + 1)
            if step % self.steps == 0 or (self.every and (step % self.steps) % self.every == 0)
        ]
        done, best, stale = [], None, 0
        for point, score in zip(points, self.scores, strict=False):
            done.append(point)
            if best is None or score < self.scores[points.index(best)]:
                best, stale = point, 0
            else:
                stale += 1
            if self.patience and stale >= self.patience:
                break
        kept = [
            point for number, point in enumerate(done, start=1) if self.keep_every and number % self.keep_every == 0
        ]
        return done, best, done[-1], kept


runs = st.builds(
    Run,
    scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=24, max_size=24),
    steps=st.integers(1, 6),
    epochs=st.integers(1, 4),
    every=st.none() | st.integers(1, 7),
    patience=st.none() | st.integers(1, 4),
    keep_every=st.none() | st.integers(1, 4),
)


@given(run=runs, kills=st.lists(st.integers(0, 12), max_size=6))
@example(Run([0.1] * 24, 4, 3, 2, 2, 3), [5, 6, 1])
def test_any_kills_leave_the_same_best_patience_and_end(run: Run, kills: list[int]) -> None:
    disk = Disk()
    for moments in kills:
        try:
            run.attempt(disk, moments)
        except Killed:
            continue
    before = len(disk.written)
    state = run.attempt(disk, None)
    validated, best, last, kept = run.expected()
    assert sorted(disk.validated) == validated
    assert state.done == last
    assert (disk.get(state.best[0]).done if state.best else None) == best
    assert sorted({one.done for one in disk.written if one.kept}) == kept
    assert state.stops_early == (last < run.steps * run.epochs)
    undisturbed = run.attempt(Disk(), None)
    assert (undisturbed.done, undisturbed.stale, undisturbed.cursor) == (state.done, state.stale, state.cursor)
    written = len(disk.written)
    assert run.attempt(disk, None).done == last  # an ended stage is not trained again
    assert len(disk.written) == written >= before


# grounding ends early: at this learning rate its recall stays where chance has it
EARLY = (
    *("--grounding.epochs=4", "--grounding.validate_every_steps=4", "--grounding.patience=3"),
    *(
        "--grounding.best=text_to_image/recall@10:max",
        "--grounding.optimizer.lr=0.003",
        "--language.epochs=1",
        "--language.validate_every_steps=5",
    ),
    *("--language.best=accuracy:max", "--checkpoints.every_steps=2", "--checkpoints.keep_every=2"),
    "--run.log_samples=true",
)


@pytest.fixture(scope="module")
def words(world: SmallWorld) -> list[str]:
    return world.settings(*EARLY, stages="grounding,language")


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run that was not interrupted."""
    storage = tmp_path_factory.mktemp("whole")
    mine = [*words, f"--run.storage={storage}"]
    preflight.claim(preflight.check(config.load("demo", mine)))
    train(mine)
    return storage / "demo"


def recorded(folder: Path) -> list[Event]:
    return [event for event, _ in history.read(Folder.at(folder))]


def told(folder: Path) -> list[tuple[object, ...]]:
    """Returns all that the history says of validations and of ends, without times."""
    events = [event for event in recorded(folder) if isinstance(event, EpochDone | StageDone)]
    return [tuple(value for key, value in vars(event).items() if key != "time") for event in events]


def kept(folder: Path) -> dict[tuple[str, int], bytes]:
    """Returns the weights of the checkpoints that were to be kept, by stage and step."""
    store = CheckpointStore.at(Folder.at(folder))
    found = [one for stage in ("grounding", "language") for one in store.committed(stage) if one.kept]
    read = {(one.stage, one.done): (store.folder / one.name).read_bytes("model.safetensors") for one in found}
    assert len(read) == len(found)
    return read


@pytest.mark.thorough
def test_a_stage_ends_early_and_the_next_one_starts(whole: Path) -> None:
    events = [event for event in recorded(whole) if event.stage == "grounding"]
    validations = [event for event in events if isinstance(event, EpochDone)]
    assert [event.step for event in validations] == [4, 8, 9, 13, 17, 18, 22, 26, 27, 31, 35][: len(validations)]
    assert [event.ends_epoch for event in validations] == [event.step % STEPS == 0 for event in validations]
    assert [event.stale for event in validations][-4:] == [0, 1, 2, 3]
    (done,) = (event for event in events if isinstance(event, StageDone))
    assert done.step == validations[-1].step < 4 * STEPS
    assert (done.best_step, done.ended) == (
        validations[-4].step,
        "stopped early: no better text_to_image/recall@10 for 3 validations",
    )
    assert len([event for event in events if isinstance(event, StepDone)]) == done.step
    result = read_result(Folder.at(whole))
    assert result is not None
    assert result["best"]["grounding"] == {
        "by": "text_to_image/recall@10:max",
        "epoch": validations[-4].epoch + 1,
        "step": done.best_step,
        "last_step": done.step,
        "ended": done.ended,
    }
    assert result["best"]["language"]["by"] == "accuracy:max"
    assert result["best"]["language"]["ended"] == "all 1 epochs done"


def test_every_second_checkpoint_is_kept_and_stays_when_others_are_deleted(whole: Path) -> None:
    validations = [event for event in recorded(whole) if isinstance(event, EpochDone)]
    of_stage = {stage: [e.step for e in validations if e.stage == stage] for stage in ("grounding", "language")}
    assert set(kept(whole)) == {(stage, step) for stage, steps in of_stage.items() for step in steps[1::2]}
    reasons = {item.names[0]: item.kept for item in find_items(Folder.at(whole), idle_seconds=0.0)}
    store = CheckpointStore.at(Folder.at(whole))
    for stage in of_stage:
        finished = store.finished(stage)
        assert finished is not None
        for one in store.committed(stage):
            best, stays = one.name == finished.best, "kept by checkpoints.keep_every"
            assert reasons[one.name] == ("the best of its stage" if best else stays if one.kept else "")


@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("deletion", 1),
        *(thorough("mid-step", count) for count in (4, 5, 9)),
        *(thorough("validation", count) for count in (1, 2, 4, 5)),
        *(thorough("epoch's edge", count) for count in (1, 3, 4)),
        *(thorough("write", count) for count in (4, 6, 7, 11)),
        *(thorough("deletion", count) for count in (2, 5, 8)),
        thorough("stage's edge", 1),
        thorough("ended", 1),
    ],
)
def test_resume_after_a_kill_gives_the_same_choice_and_weights(
    words: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    kill_at(place, count, monkeypatch)
    events = resume_killed(words, whole, tmp_path, monkeypatch)
    assert told(tmp_path / "demo") == told(whole)
    assert kept(tmp_path / "demo") == kept(whole)
    if place == "ended":  # the decision was made: nothing of the stage is trained again
        assert not any(event.stage == "grounding" for event in events if isinstance(event, StepDone))
    ours, theirs = (read_result(Folder.at(folder)) for folder in (tmp_path / "demo", whole))
    assert ours == theirs


@pytest.mark.thorough
def test_validations_within_an_epoch_do_not_change_the_training(world: SmallWorld, tmp_path: Path) -> None:
    words = ("--checkpoints.keep_every=1", f"--run.storage={tmp_path}")
    train(world.settings(*words, "--run.name=plain"))
    train(world.settings(*words, "--run.name=more", "--grounding.validate_every_steps=2"))
    plain, more = (kept(tmp_path / name) for name in ("plain", "more"))
    assert [step for _, step in plain] == [STEPS, 2 * STEPS]
    assert [step for _, step in more] == [2, 4, 6, 8, 9, 11, 13, 15, 17, 18]
    assert all(more[where] == content for where, content in plain.items())


@pytest.mark.thorough
def test_a_checkpoint_of_an_earlier_version_resumes(words: list[str], world: SmallWorld, tmp_path: Path) -> None:
    mine = world.settings("--checkpoints.every_steps=4", f"--run.storage={tmp_path}")
    whole = tmp_path / "whole"
    train([*mine, "--run.name=whole"])
    steps = [0]

    def killing(event: Event) -> None:
        steps[0] += isinstance(event, StepDone)
        if steps[0] == 14:
            raise Killed

    with pytest.raises(Killed):
        train(mine, killing)
    folder = Folder.at(tmp_path / "demo" / "checkpoints")
    complete = [name for name in folder.names() if (folder / name).exists(MANIFEST)]  # the last one may not be
    for name in complete:
        manifest = (folder / name).read_sealed(MANIFEST)
        former = {key: value for key, value in manifest.items() if key not in ("validated", "stale", "kept", "sha256")}
        assert len(former) == len(manifest) - 3
        (folder / name).write_sealed(MANIFEST, former)
    events: list[Event] = []
    train(mine, events.append)
    assert next(event for event in events if isinstance(event, StageStarted)).step in (9, 13)
    assert weights(tmp_path / "demo") == weights(whole)


def test_new_settings_at_their_defaults_are_not_part_of_a_run(world: SmallWorld) -> None:
    identity = config.load("demo", world.settings()).identity()
    assert not [name for name in identity if name.endswith((".best", ".patience", ".validate_every_steps"))]
    given = ("--grounding.best=loss:min", "--grounding.patience=3", "--grounding.validate_every_steps=4")
    more = config.load("demo", world.settings(*given, "--checkpoints.keep_every=2")).identity()
    assert {name: value for name, value in more.items() if name not in identity} == {
        "grounding.best": "loss:min",
        "grounding.patience": 3,
        "grounding.validate_every_steps": 4,
    }


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("best=loss", "grounding.best: expected METRIC:min or METRIC:max, as loss:min, got 'loss'"),
        ("best=loss:minimum", "got 'loss:minimum' (did you mean 'loss:min'?)"),
        ("best=:min", "expected METRIC:min or METRIC:max, as loss:min, got ':min'"),
        ("best=loss:max", "grounding.best: expected loss:min, since lower is better, got loss:max"),
        ("best=text_to_image/recall@10:min", "expected text_to_image/recall@10:max, since higher is better"),
        ("best=text_to_image/recal@10:max", "stage grounding reports loss, text_to_image/recall@1, "),
        ("best=text_to_image/recal@10:max", "got 'text_to_image/recal@10' (did you mean 'text_to_image/recall@10'?)"),
        ("patience=0", "grounding.patience: Input should be greater than or equal to 1"),
        ("validate_every_steps=0", "grounding.validate_every_steps: Input should be greater than or equal to 1"),
        (
            "validate_every_steps=10",
            "grounding.validate_every_steps: expected at most 9, the steps of an epoch, got 10",
        ),
    ],
)
def test_what_cannot_be_is_named_before_a_worker_is_asked_for(world: SmallWorld, word: str, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        preflight.check(config.load("demo", world.settings(f"--grounding.{word}")))
    assert said in str(error.value)


def test_modern_chooses_by_recall_and_the_other_presets_as_before() -> None:
    modern = config.load("modern")
    for stage in ("grounding", "retrieval"):
        assert modern.stage(stage).best == "text_to_image/recall@10:max"
    for preset in ("paper", "demo", "photos"):
        settings = config.load(preset)
        assert all(settings.stage(stage).best is None for stage in settings.stages)
