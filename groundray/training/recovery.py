"""How an attempt begins: with what the ones before it have left that is whole."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from groundray.distributed import gather_strings
from groundray.storage.folder import Folder
from groundray.training import attempts, history
from groundray.training.attempts import Attempt, FencingToken
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import Attempted, Notice, Recovered
from groundray.training.watchdog import stacks_since
from groundray.training.worker import Worker


@dataclass(frozen=True)
class Start:
    """Where an attempt begins.

    Attributes:
        number: of the attempt.
        token: of its mark, see attempts.py.
        accepted: names of what older attempts wrote that counts.
        stage: the first that is not finished; None where all are.
        checkpoint: where that stage goes on; None at its beginning.
        epoch: of that checkpoint's cursor, as is step.
        done: steps of the stage that are done.
        began: when the attempt began, in seconds since 1970.
        last_heartbeat: of the attempt before it; None for the first.
        ended: why that one ended: `preempted`, `resized`, `stopped`, `hung`, `finished`; `killed` if it cannot tell.
        repeated_steps: steps that it had done after the checkpoint, which are done again.
        repeated_seconds: that it had spent since that checkpoint.
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

    def attempt(self, run: Folder) -> Attempt:
        """The attempt that begins so."""
        return Attempt(run, FencingToken(self.number, self.token), frozenset(self.accepted))

    def event(self) -> Attempted:
        """What is told of it."""
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
        """What is told when its first step is done."""
        return Recovered(self.number, now - self.began, now - (self.last_heartbeat or self.began))


def begin(run: Folder, stages: Sequence[str], worker: Worker) -> tuple[CheckpointStore, Start]:
    """The store and the start of a new attempt, the same on every rank: rank 0 looks, and tells the others."""
    told = ""
    gather_strings(told)  # a rank 0 whose group is gone, and that has only now come to life, must not take a number
    if worker.rank == 0:
        told = json.dumps(asdict(_begin(run, stages, worker)))
    start = _start(json.loads(gather_strings(told)[0]))
    if worker.rank == 0:
        worker.emit(start.event())
    return CheckpointStore(start.attempt(run)), start


def recoveries(run: Folder) -> list[Attempted | Recovered]:
    """What was told of each attempt so far, from what is kept of them."""
    told: list[Attempted | Recovered] = []
    steps = history.by_attempt(run)
    for mark, note in sorted(attempts.begun(run).items(), key=lambda one: one[0]):
        start = _start(note)
        told.append(start.event())
        if mark.number > 1 and (own := steps.get(mark)):
            told.append(start.recovered(min(line["time"] for line in own)))
    return told


def _start(known: Mapping[str, Any]) -> Start:
    """The start that was written as JSON."""
    values: dict[str, Any] = {field.name: known[field.name] for field in fields(Start)}
    return Start(**{**values, "accepted": tuple(values["accepted"])})


def _begin(run: Folder, stages: Sequence[str], worker: Worker) -> Start:
    def warn(text: str) -> None:
        worker.emit(Notice(text))

    (number, token), began = attempts.claim(run), time.time()  # before looking: see attempts.py
    left = attempts.latest(run)
    for damaged, note in attempts.damaged(run).items():
        lost = "what that attempt did is done again" if damaged > left.token else "later attempts have built on it"
        warn(f"{note} is damaged; {lost}")
    store = CheckpointStore(left)
    accepted: list[str] = []
    start = Start(number, token, (), None, None, 0, 0, 0, began)
    for stage in stages:
        worker.heartbeat()
        if (done := store.finished(stage, warn)) and store.whole(done, warn):
            others = (name for one in store.committed(stage) for name in (one.name, one.best) if name)
            accepted += [done.name, done.best, *others]
            continue
        there = store.usable(stage, warn)
        accepted += [name for one in there for name in (one.name, one.best) if name]
        start = replace(start, stage=stage)
        if there:
            last = there[-1]
            start = replace(start, checkpoint=last.name, epoch=last.cursor.epoch, step=last.cursor.step, done=last.done)
        break
    start = replace(start, accepted=tuple(dict.fromkeys(accepted)))
    if left.number:
        start = _after(start, left, store)
    start.attempt(run).write_begin({**asdict(start), "stages": list(stages), "workers": worker.world_size})
    return start


def _after(start: Start, left: Attempt, store: CheckpointStore) -> Start:
    """The start with what is known of the attempt before it."""
    before = attempts.begun(left.run)[left.token]
    sign = left.last_heartbeat() or {"stage": None, "done": 0, "time": before["began"], "ended": ""}
    hung = stacks_since(left.run, before["began"])
    ended = sign["ended"] or ("hung" if hung else "killed")
    saved_at = store.named(start.checkpoint).saved_at if start.checkpoint else before["began"]
    lost = ended not in ("finished", "stopped")
    return replace(
        start,
        last_heartbeat=sign["time"],
        ended=ended,
        repeated_steps=max(0, sign["done"] - start.done) if lost and sign["stage"] == start.stage else 0,
        repeated_seconds=max(0.0, sign["time"] - max(saved_at, before["began"])) if lost else 0.0,
        preemptions=before["preemptions"] + (ended == "preempted"),
    )
