"""Recovery: an attempt resumes at the newest intact checkpoint that older attempts have left."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from groundray.config import SettingsError
from groundray.distributed import gather_strings
from groundray.storage.folder import Folder
from groundray.training import attempts, history, identity
from groundray.training.attempts import Attempt, FencingToken
from groundray.training.checkpoint import Checkpoint, CheckpointStore
from groundray.training.events import Attempted, Notice, Recovered
from groundray.training.watchdog import stacks_since
from groundray.training.worker import Worker


@dataclass(frozen=True)
class Start:
    """The starting point of an attempt; written to `RUN/attempts/`.

    Attributes:
        number: of the attempt.
        token: the nonce of its fencing token.
        accepted: names of files of older attempts that this one builds on.
        stage: the first that is not finished; None if all are.
        checkpoint: the one that the stage resumes from; None to start from its beginning.
        epoch: of the checkpoint's cursor, as is `step`.
        done: steps of the stage that are done.
        validated: True if the checkpoint's weights are validated.
        began: when the attempt began, in seconds since 1970.
        last_heartbeat: of the previous attempt, in seconds since 1970; None for the first attempt.
        ended: why the previous attempt ended: `preempted`, `resized`, `stopped`, `hung`, `finished`, or `killed` if it
            did not say.
        repeated_steps: steps of the previous attempt after the checkpoint, which are done again.
        repeated_seconds: time that it spent after the checkpoint.
        preemptions: of the run so far.
    """

    number: int
    token: str
    accepted: tuple[str, ...]
    stage: str | None
    checkpoint: str | None
    epoch: int
    step: int
    done: int
    began: float
    last_heartbeat: float | None = None
    ended: str = ""
    repeated_steps: int = 0
    repeated_seconds: float = 0.0
    preemptions: int = 0
    validated: bool = False

    def attempt(self, run: Folder) -> Attempt:
        """Returns the attempt that begins here."""
        return Attempt(run, FencingToken(self.number, self.token), frozenset(self.accepted))

    def event(self) -> Attempted:
        """Returns the event of its beginning."""
        return Attempted(
            self.number,
            self.stage,
            self.done,
            self.ended,
            self.repeated_steps,
            self.repeated_seconds,
            self.preemptions,
        )

    def recovered(self, now: float) -> Recovered:
        """Returns the event of its first step, done at `now`."""
        return Recovered(self.number, now - self.began, now - (self.last_heartbeat or self.began))


def begin(
    run: Folder,
    stages: Sequence[str],
    worker: Worker,
    made_with: Mapping[str, Any] | None = None,
    continue_from: str | None = None,
) -> tuple[CheckpointStore, Start]:
    """Begin an attempt; returns its store and start, the same on every rank. Only rank 0 reads the storage.

    Args:
        made_with: hash of the settings, version of the code and of libraries; recorded with the attempt.
        continue_from: path or URL of another run's checkpoint of the first stage, which a run without checkpoints of
            its own continues.

    Raises:
        SettingsError: there is no such checkpoint, or the folder belongs to a run of other settings.
        OtherFormat: a checkpoint has a format that this version does not read; nothing was changed.
    """
    note = ""
    gather_strings(note)  # a rank 0 that wakes up after its group is gone must not take a token
    if worker.rank == 0:
        note = json.dumps(asdict(_begin(run, stages, worker, made_with or {}, continue_from)))
    start = _start(json.loads(gather_strings(note)[0]))
    if worker.rank == 0:
        worker.emit(start.event())
    return CheckpointStore(start.attempt(run)), start


def recoveries(run: Folder, recovered: Container[int] = ()) -> list[Attempted | Recovered]:
    """Returns the events of each attempt's beginning and first step, from the run's files.

    Args:
        recovered: numbers of attempts whose first step is left out.
    """
    events: list[Attempted | Recovered] = []
    notes = sorted(attempts.begun(run).items(), key=lambda item: item[0])
    times = history.first_times(run, [mark for mark, _ in notes if mark.number > 1 and mark.number not in recovered])
    for mark, note in notes:
        start = _start(note)
        events.append(start.event())
        if mark in times:
            events.append(start.recovered(times[mark]))
    return events


def _start(note: Mapping[str, Any]) -> Start:
    """Returns the start that was written as JSON."""
    values: dict[str, Any] = {field.name: note[field.name] for field in fields(Start) if field.name in note}
    return Start(**{**values, "accepted": tuple(values["accepted"])})


def _begin(
    run: Folder, stages: Sequence[str], worker: Worker, made_with: Mapping[str, Any], continue_from: str | None
) -> Start:
    def warn(text: str) -> None:
        worker.emit(Notice(text))

    CheckpointStore(Attempt(run)).check_formats()
    _ensure_own(run, made_with)  # before the attempt ends another's
    (number, token), began = attempts.claim(run, made_with), time.time()  # before reading: attempts.py
    previous = attempts.latest(run)
    if changed := _changed_versions(previous.made_with(), made_with):
        warn(f"resumes with {changed}: results may differ from those of one version")
    for damaged, note in attempts.damaged(run).items():
        consequence = (
            "the steps of that attempt are done again"
            if damaged > previous.token
            else "later attempts have built on it"
        )
        warn(f"{note} is damaged; {consequence}")
    for message in previous.damaged_figures():
        warn(message)
    store = CheckpointStore(previous)
    accepted: list[str] = []
    start = Start(number, token, (), None, None, 0, 0, 0, began)
    for stage in stages:
        worker.heartbeat()
        if (finished := store.finished(stage, warn)) and store.is_intact(finished, warn):
            accepted += [finished.name, finished.best, *_names(store.committed(stage))]
            continue
        usable = store.usable(stage, warn)
        start = replace(start, stage=stage)
        if not usable and continue_from and stage == stages[0]:
            usable = [_take_over(start.attempt(run), stage, continue_from)]
        if usable:
            last = usable[-1]
            start = replace(
                start,
                checkpoint=last.name,
                epoch=last.cursor.epoch,
                step=last.cursor.step,
                done=last.done,
                validated=last.validated,
            )
        accepted += _names(usable)
        break
    start = replace(start, accepted=tuple(dict.fromkeys(accepted)))
    if previous.number:
        start = _after(start, previous, store)
    start.attempt(run).write_begin({**asdict(start), "stages": list(stages), "workers": worker.world_size})
    return start


def another_runs(url: str) -> tuple[CheckpointStore, str]:
    """Return the store and the name of a checkpoint, by its path or URL, RUN/checkpoints/NAME."""
    folder = Folder.at(url)
    return CheckpointStore(Attempt(folder.parent.parent)), folder.name


def check_continued(url: str, stage: str) -> Checkpoint:
    """Return the checkpoint of another run that a stage continues.

    Raises:
        SettingsError: there is none, or it is of another stage; the message gives the repair.
    """
    store, name = another_runs(url)
    expected = f"run.continue_from: expected a checkpoint of stage {stage}, such as runs/NAME/checkpoints/{stage}-..."
    try:
        checkpoint = store.get(name)
    except ValueError as error:
        raise SettingsError(f"{expected}: {error}") from None
    if checkpoint.stage != stage:
        raise SettingsError(f"{expected}, got {url} of stage {checkpoint.stage}: start with that stage (stages)")
    return checkpoint


def _take_over(attempt: Attempt, stage: str, url: str) -> Checkpoint:
    check_continued(url, stage)
    return CheckpointStore(attempt).take_over(*another_runs(url))


def _ensure_own(run: Folder, made_with: Mapping[str, Any]) -> None:
    """Raise SettingsError if a folder belongs to a run of other settings than those of this attempt."""
    owner = identity.read(run) if "settings" in made_with else None
    if owner and owner.fingerprints:
        expected = identity.settings_hash(owner.settings, owner.fingerprints)
        if made_with["settings"] != expected:
            raise SettingsError(
                f"{run} holds a run of another configuration, with the hash {expected[:12]} of settings and data, got "
                f"{made_with['settings'][:12]}: use another --run.name"
            )


def _changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the code and libraries of another version than in the previous attempt; empty if all are the same."""
    old, new = ({"groundray": made.get("code"), **made.get("versions", {})} for made in (before, now))
    return ", ".join(
        f"{name} {version} ({old[name]} before)"
        for name, version in new.items()
        if old.get(name) not in (None, version)
    )


def _names(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Returns the names of checkpoints, and of the best ones that they refer to."""
    return [name for checkpoint in checkpoints for name in (checkpoint.name, checkpoint.best) if name]


def _after(start: Start, previous: Attempt, store: CheckpointStore) -> Start:
    """Returns the start with what is known of the previous attempt."""
    note = attempts.begun(previous.run)[previous.token]
    heartbeat = previous.last_heartbeat() or {"stage": None, "done": 0, "time": note["began"], "ended": ""}
    hung = stacks_since(previous.run, note["began"])
    ended = heartbeat["ended"] or ("hung" if hung else "killed")
    saved_at = store.get(start.checkpoint).saved_at if start.checkpoint else note["began"]
    repeats = ended not in ("finished", "stopped")
    return replace(
        start,
        last_heartbeat=heartbeat["time"],
        ended=ended,
        repeated_steps=max(0, heartbeat["done"] - start.done) if repeats and heartbeat["stage"] == start.stage else 0,
        repeated_seconds=max(0.0, heartbeat["time"] - max(saved_at, note["began"])) if repeats else 0.0,
        preemptions=note["preemptions"] + (ended == "preempted"),
    )
