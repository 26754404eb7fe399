"""What came out of a sweep: trials, the points that they are repeats of, and the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from groundray.runtime.tune.search_space import format_value
from groundray.runtime.tune.spec import SEED, Metric

State = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of the run, in the sweep's trials/ folder.
        values: swept settings, by dotted name, without the seed.
        value: the metric at the epoch that the stage itself holds for its best so far, whose weights a model has.
        epochs: how many were validated.
    """

    name: str
    values: Mapping[str, Any]
    seed: int
    state: State
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def all_values(self) -> dict[str, Any]:
        return {**self.values, SEED: self.seed}


@dataclass(frozen=True)
class Point:
    """The trials that have the same values, and differ in their seeds."""

    trials: tuple[Trial, ...]

    @property
    def values(self) -> Mapping[str, Any]:
        return self.trials[0].values

    @property
    def measured(self) -> list[float]:
        """What trials that came to an end reached; of those that did not, where there is none."""
        ended = [trial for trial in self.trials if trial.state == "finished"] or self.trials
        return [trial.value for trial in ended if trial.value is not None and not math.isnan(trial.value)]

    @property
    def mean(self) -> float:
        """Over seeds; not a number where there is none."""
        return statistics.fmean(self.measured) if self.measured else math.nan

    @property
    def std(self) -> float:
        """The standard deviation over seeds; 0 of one."""
        return statistics.stdev(self.measured) if len(self.measured) > 1 else 0.0

    @property
    def finished(self) -> bool:
        return any(trial.state == "finished" for trial in self.trials)


def points(trials: Sequence[Trial], metric: Metric) -> list[Point]:
    """The points of some trials, best first: those with a trial that came to its end, then those without, then those
    without a value."""
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.name, trial.seed)):
        groups.setdefault(repr(sorted(trial.values.items())), []).append(trial)
    found = [Point(tuple(sorted(group, key=lambda trial: trial.seed))) for group in groups.values()]

    def place(point: Point) -> tuple[bool, bool, float]:
        return not point.measured, not point.finished, point.mean if metric.mode == "min" else -point.mean

    return sorted(found, key=place)


def best_trial(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Of the best point's trials that came to their end, the best; None where none did."""
    for point in points(trials, metric):
        ended = [trial for trial in point.trials if trial.state == "finished" and trial.value is not None]
        if ended:
            sign = 1 if metric.mode == "min" else -1
            return min(ended, key=lambda trial: sign * (trial.value or 0.0))
    return None


def table(trials: Sequence[Trial], metric: Metric) -> tuple[list[str], list[list[str]]]:
    """A table: its head, and a line a point, best first."""
    found = points(trials, metric)
    repeated = any(len(point.trials) > 1 for point in found)
    names = list(found[0].values) if found else []
    head = [*names, str(metric), *(["over seeds"] if repeated else []), "epochs", "state", "minutes"]
    lines = []
    for point in found:
        states = [trial.state for trial in point.trials]
        each = {state: states.count(state) for state in dict.fromkeys(states)}
        lines.append(
            [
                *(format_value(value) for value in point.values.values()),
                f"{point.mean:.4g}" if point.measured else "",
                *([f"± {point.std:.2g} ({len(point.measured)})"] if repeated else []),
                ", ".join(dict.fromkeys(str(trial.epochs) for trial in point.trials)),
                ", ".join(state if len(states) == 1 else f"{count} {state}" for state, count in each.items()),
                f"{sum(trial.seconds for trial in point.trials) / 60:.1f}",
            ]
        )
    return head, lines
