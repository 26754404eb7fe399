"""Events of a training run, which the driver prints and logs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageStarted:
    """A stage starts, or resumes after `step` of its `steps`."""

    stage: str
    step: int
    steps: int
    epochs: int


@dataclass(frozen=True)
class StepDone:
    """A step of `stage` is done; `metrics` has its loss and what `timing.StepTimer` measured."""

    stage: str
    epoch: int
    step: int  # counted from the stage's first
    steps: int
    metrics: dict[str, float]
    time: float = field(default_factory=time.time)  # seconds since 1970, here and below


@dataclass(frozen=True)
class EpochDone:
    """A stage is validated, at the end of an epoch or within it.

    Attributes:
        best: true if it is the stage's best validation so far.
        ends_epoch: false for a validation within an epoch.
        stale: consecutive validations without a new best, this one included.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    best: bool
    metrics: dict[str, float] = field(default_factory=dict)
    time: float = field(default_factory=time.time)
    ends_epoch: bool = True
    stale: int = 0


@dataclass(frozen=True)
class StageDone:
    """A stage is finished after `step` steps; `metrics` are those of its best weights, where the next stage starts.

    Attributes:
        best_epoch: the epoch of its best validation, from 0; None in the history of an earlier version.
        best_step: the step of the stage after which that validation was.
        ended: why the stage ended, in a few words.
    """

    stage: str
    step: int
    metrics: dict[str, float]
    time: float = field(default_factory=time.time)
    best_epoch: int | None = None
    best_step: int | None = None
    ended: str = ""


@dataclass(frozen=True)
class FeaturesStarted:
    """The trunk features of `what` (as `grounding.train`), or what else `title` says, are being made.

    Attributes:
        images: in the data set.
        missing: images without features so far.
        bytes: size of all features.
        folder: where they are stored.
    """

    what: str
    images: int
    missing: int
    bytes: int
    folder: str
    title: str = "trunk features"


@dataclass(frozen=True)
class FeaturesDone:
    """The trunk features of `images` images are complete; making them took `seconds`."""

    what: str
    images: int
    seconds: float
    title: str = "trunk features"


@dataclass(frozen=True)
class Attempted:
    """An attempt at the run begins.

    Attributes:
        number: counted from 1.
        stage: the stage that it resumes, after `done` of its steps; None if all are finished.
        ended: why the previous attempt ended; empty for the first.
        repeated_steps: steps of the previous attempt that are done again.
        repeated_seconds: time that it spent on them.
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
    """The first step of a resumed run is done.

    Attributes:
        number: of the attempt.
        start_seconds: since the attempt began.
        down_seconds: since the last heartbeat of the previous attempt.
    """

    number: int
    start_seconds: float
    down_seconds: float


@dataclass(frozen=True)
class Notice:
    """A message to show."""

    text: str


Event = (
    StageStarted | StepDone | EpochDone | StageDone | FeaturesStarted | FeaturesDone | Attempted | Recovered | Notice
)
