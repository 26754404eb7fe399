"""Histories of runs for tests, as attempts write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from groundray.storage.folder import Folder
from groundray.training import attempts, history
from groundray.training.attempts import Attempt
from groundray.training.events import EpochDone, StepDone
from groundray.training.recovery import Start

STAGE = "grounding"


def begin(run: Folder, done: int, epoch_steps: int, stages: Sequence[str] = (STAGE,)) -> Attempt:
    """Begin an attempt after `done` steps of the stage."""
    epoch, step = divmod(done, epoch_steps)
    attempt = Attempt(run, attempts.claim(run))
    start = Start(*attempt.token, (), STAGE, None, epoch, step, done, began=1e9)
    attempt.write_begin({**asdict(start), "stages": list(stages)})
    return attempt


def steps(first: int, last: int, total: int, epoch_steps: int, when: float = 1e9) -> list[StepDone | EpochDone]:
    """Return the events of the steps from the first to the last, and of the epochs that end with them."""
    events: list[StepDone | EpochDone] = []
    for step in range(first, last + 1):
        epoch = (step - 1) // epoch_steps
        events.append(StepDone(STAGE, epoch, step, total, {"loss": 1 / step, "seconds": 0.5}, time=when + step))
        if step % epoch_steps == 0:
            scores = {"loss": 1 / step, "recall@10": 0.5}
            events.append(EpochDone(STAGE, epoch, total // epoch_steps, step, True, scores, time=when + step))
    return events


def write(attempt: Attempt, events: Sequence[StepDone | EpochDone], epoch_steps: int) -> str:
    """Write the file of events up to a checkpoint, and return its name."""
    epoch, step = divmod(events[-1].step, epoch_steps)
    if step == 0 and isinstance(events[-1], StepDone):  # before the validation
        epoch, step = epoch - 1, epoch_steps
    name = attempt.name(f"{STAGE}-{epoch:05d}-{step:06d}")
    history.write(attempt.run, name, tuple(map(history.to_line, events)))
    return f"{name}.jsonl"
