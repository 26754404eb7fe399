"""The steps of a run that a tracker holds, so that it logs each event once, however often steps were repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking.store import metric_name
from groundray.training import history, recovery
from groundray.training.events import Attempted, EpochDone, Event, Recovered, StageDone, StepDone
from groundray.training.history import HistoryFile
from groundray.training.step_ranges import StepRanges

PREFIXES = {StepDone: "", EpochDone: "/val", StageDone: "/best"}  # of an event's metrics, after the stage's name
ATTEMPTED, RECOVERED = "attempted", "recovered"  # series of `recovery/...`, with the attempt's number as the step


class Entry(NamedTuple):
    """The metrics of an event, by name: `grounding/loss` of a step, `grounding/val/loss` of a validation,
    `grounding/best/loss` of a stage's best weights, `recovery/...` of an attempt. There is one event for each series
    and step; its time is in seconds since 1970."""

    series: str
    step: int
    time: float
    metrics: dict[str, float]


class LoggedSteps:
    """The steps of each series that a tracker holds."""

    def __init__(
        self,
        settings: Settings,
        steps: Mapping[str, StepRanges] | None = None,
        progress: Callable[[float], None] = lambda _: None,
    ):
        """Start with some steps, by default none.

        Args:
            steps: of all series (`series_of`).
            progress: is called with 0 for each event and each file that is considered.
        """
        self.steps = steps or {series: StepRanges() for series in series_of(settings)}
        self._settings, self._progress = settings, progress
        self._epoch_steps: dict[str, int] = {}  # steps of an epoch, by stage

    def missing(self, events: Iterable[Event]) -> Iterator[Entry]:
        """Yield the entries of the events that have metrics and are not logged."""
        for event in events:
            self._progress(0.0)
            if isinstance(event, StepDone):
                epochs = self._settings.stage(event.stage).epochs
                self._epoch_steps[event.stage] = 0 if event.steps % epochs else event.steps // epochs
            if (entry := entry_of(event)) and entry.step not in self.steps[entry.series]:
                yield entry

    def missed(self, folder: Folder, warn: Callable[[str], None]) -> Iterator[Event]:
        """Yield the events in the files of a run, in the order of its steps. Files of which all events are logged are
        not read."""
        yield from (event for event, _ in history.read(folder, warn, self._lacks))
        yield from recovery.recoveries(folder, self.steps[RECOVERED])

    def _lacks(self, file: HistoryFile) -> bool:
        """Return False if all events of a file of history are logged, as far as its name tells."""
        self._progress(0.0)
        if file.stage not in self._settings.stages:
            return True
        steps, validated, best = (self.steps[file.stage + suffix] for suffix in PREFIXES.values())
        if file.until is None:
            return best.last < 0
        epoch_steps = self._epoch_steps.get(file.stage)
        if not file.after or not epoch_steps:
            return True
        first, last = (cursor.epoch * epoch_steps + cursor.step for cursor in (file.after, file.until))
        ends = (end * epoch_steps for end in range(file.after.epoch + 1, file.until.epoch + 1))
        # one at an edge may be in this file or in its neighbour
        every = self._settings.stage(file.stage).validate_every_steps
        within = (
            step for step in range(first, last + 1) if every and (inside := step % epoch_steps) and not inside % every
        )
        return not (
            all(step in steps for step in range(first + 1, last + 1))
            and all(step in validated for step in (*ends, *within))
        )


def series_of(settings: Settings) -> dict[str, str]:
    """Return the series of a run, each with the name of a metric that all its entries have."""
    series = {stage + suffix: f"{stage}{suffix}/loss" for stage in settings.stages for suffix in PREFIXES.values()}
    return series | {ATTEMPTED: "recovery/attempts", RECOVERED: "recovery/first_step_seconds"}


def entry_of(event: Event) -> Entry | None:
    """Return the metrics of an event; None if it has none."""
    match event:
        case StepDone() | EpochDone() | StageDone():
            series = event.stage + PREFIXES[type(event)]
            metrics = {metric_name(f"{series}/{name}"): value for name, value in event.metrics.items()}
            return Entry(series, event.step, event.time, metrics)
        case Attempted():
            metrics = {
                "recovery/attempts": float(event.number),
                "recovery/preemptions": float(event.preemptions),
                "recovery/repeated_steps": float(event.repeated_steps),
                "recovery/repeated_seconds": event.repeated_seconds,
            }
            return Entry(ATTEMPTED, event.number, time.time(), metrics)
        case Recovered():
            metrics = {
                "recovery/first_step_seconds": event.start_seconds,
                "recovery/down_seconds": event.down_seconds,
            }
            return Entry(RECOVERED, event.number, time.time(), metrics)
    return None
