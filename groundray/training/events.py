"""What a run tells while it trains; the driver prints it and logs it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageStarted:
    """A stage begins, or goes on at `step` (counted from the stage's first) of `steps`."""

    stage: str
    step: int
    steps: int
    epochs: int


@dataclass(frozen=True)
class StepDone:
    """A step of `stage`; `metrics` holds the loss, and what the timer tells of its time."""

    stage: str
    epoch: int
    step: int  # counted from the stage's first
    steps: int
    metrics: dict[str, float]
    time: float = field(default_factory=time.time)  # seconds since 1970, here and below


@dataclass(frozen=True)
class EpochDone:
    """Validation at the end of an epoch; `best` says whether it is the stage's best so far."""

    stage: str
    epoch: int
    epochs: int
    step: int
    best: bool
    metrics: dict[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class StageDone:
    """A stage is over after so many steps; `metrics` are those of its best epoch, which the next stage starts from."""

    stage: str
    step: int
    metrics: dict[str, float]
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class FeaturesStarted:
    """A pass through the frozen trunk begins, for `what` (as `grounding.train`): `missing` of `images` images, whose
    feature maps take `bytes` all together at `folder`."""

    what: str
    images: int
    missing: int
    bytes: int
    folder: str


@dataclass(frozen=True)
class FeaturesDone:
    """The feature maps of `images` images are there, after so many seconds."""

    what: str
    images: int
    seconds: float


@dataclass(frozen=True)
class Attempted:
    """An attempt at the run begins.

    Attributes:
        number: of the attempt, counted from 1.
        stage: the one that it begins with, after `done` steps of it; None where all are finished.
        ended: why the attempt before it ended; empty for the first.
        repeated_steps: steps of that one that are done again.
        repeated_seconds: that it spent on them.
        preemptions: of the run so far.
    """

    number: int
    stage: str | None
    done: int
    ended: str
    repeated_steps: int
    repeated_seconds: float
    preemptions: int


@dataclass(frozen=True)
class Recovered:
    """The first step of a later attempt is done: so many seconds after it began, and after the last sign of life of
    the one before it."""

    number: int
    start_seconds: float
    down_seconds: float


@dataclass(frozen=True)
class Notice:
    """Something that a person should know."""

    text: str


Event = (
    StageStarted | StepDone | EpochDone | StageDone | FeaturesStarted | FeaturesDone | Attempted | Recovered | Notice
)
