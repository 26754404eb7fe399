"""The results of a sweep: its trials, the points whose repeats they are, and the best of them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from groundray.runtime.tune.search_space import format_value
from groundray.runtime.tune.spec import SEED, Metric

State = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: the run's name in the sweep's trials/ folder.
        values: swept settings by dotted name, without the seed.
        value: the first metric at the best epoch by the stage's own criterion, whose weights the exported model has.
        epochs: number of validated epochs.
        scores: all metrics by name, each as `value` is, where there are several.
        follows: of population-based training: the trial whose training this one took up; empty for none.
        since: the epochs that were done when it did.
        continue_from: the checkpoint with which it began, as `run.continue_from`.
    """

    name: str
    values: Mapping[str, Any]
    seed: int
    state: State
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    follows: str = ""
    since: int = 0
    continue_from: str | None = None

    @property
    def all_values(self) -> dict[str, Any]:
        return {**self.values, SEED: self.seed}


@dataclass(frozen=True)
class Point:
    """The trials with the same values and different seeds."""

    trials: tuple[Trial, ...]

    @property
    def values(self) -> Mapping[str, Any]:
        return self.trials[0].values

    @property
    def measured(self) -> list[float]:
        """Finite metric values of the finished trials, or of all trials if none has finished."""
        finished = [trial for trial in self.trials if trial.state == "finished"] or self.trials
        return [trial.value for trial in finished if trial.value is not None and math.isfinite(trial.value)]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without a value."""
        return statistics.fmean(self.measured) if self.measured else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over seeds; 0 for a single value."""
        return statistics.stdev(self.measured) if len(self.measured) > 1 else 0.0

    @property
    def finished(self) -> bool:
        return any(trial.state == "finished" for trial in self.trials)


def points(trials: Sequence[Trial], metric: Metric) -> list[Point]:
    """Group trials into points. Points with a finished trial come first, those without a value last; best first."""
    groups: dict[tuple[str, int], list[Trial]] = {}
    repeats: Counter[tuple[str, int]] = Counter()
    for trial in sorted(trials, key=lambda trial: (trial.name, trial.seed)):
        values = repr(sorted(trial.values.items()))
        # a point has a seed once: members of a population share theirs, and equal values do not make them repeats
        groups.setdefault((values, repeats[values, trial.seed]), []).append(trial)
        repeats[values, trial.seed] += 1
    grouped = [Point(tuple(sorted(group, key=lambda trial: trial.seed))) for group in groups.values()]

    def rank(point: Point) -> tuple[bool, bool, float]:
        return not point.measured, not point.finished, point.mean if metric.mode == "min" else -point.mean

    return sorted(grouped, key=rank)


def best_trial(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Return the best finished trial of the best point, or None if no trial has finished with a finite value."""
    for point in points(trials, metric):
        finished = [
            (trial.value, trial)
            for trial in point.trials
            if trial.state == "finished" and trial.value is not None and math.isfinite(trial.value)
        ]
        if finished:
            choose = min if metric.mode == "min" else max
            return choose(finished, key=lambda measured: measured[0])[1]
    return None


def valued_by(trials: Sequence[Trial], metric: Metric) -> list[Trial]:
    """Return trials of several metrics with this one as their `value`."""
    return [replace(trial, value=trial.scores.get(str(metric))) for trial in trials]


def front(trials: Sequence[Trial], metrics: Sequence[Metric]) -> list[Point]:
    """Return the points of the Pareto front, best by the first metric first.

    No other finished point is at least as good in the mean of every metric, and better in that of one. Points without a
    finite value of every metric are not compared.
    """
    ranked = points(valued_by(trials, metrics[0]), metrics[0])
    measured = [(point, losses) for point in ranked if (losses := _losses(point, metrics)) is not None]

    def dominated(losses: tuple[float, ...]) -> bool:
        return any(other != losses and all(a <= b for a, b in zip(other, losses, strict=True)) for _, other in measured)

    return [point for point, losses in measured if not dominated(losses)]


def _losses(point: Point, metrics: Sequence[Metric]) -> tuple[float, ...] | None:
    """Return the mean of each metric, negated where high values are better; None if the point is not compared."""
    means = mean_scores(point, metrics)
    if not point.finished or not all(map(math.isfinite, means)):
        return None
    return tuple(mean if metric.mode == "min" else -mean for mean, metric in zip(means, metrics, strict=True))


def mean_scores(point: Point, metrics: Sequence[Metric]) -> list[float]:
    """Return a point's mean of each metric; NaN without a value."""
    return [Point(tuple(valued_by(point.trials, metric))).mean for metric in metrics]


def table(trials: Sequence[Trial], metric: Metric, *others: Metric) -> tuple[list[str], list[list[str]]]:
    """Return the header of a table, and its rows: one for each point, best first.

    With several metrics, the points of the front come first, and are marked.
    """
    ranked, best = points(trials, metric), list[str]()
    if others:
        best = [point.trials[0].name for point in front(trials, (metric, *others))]
        ranked.sort(key=lambda point: point.trials[0].name not in best)
    repeated = any(len(point.trials) > 1 for point in ranked)
    names = list(ranked[0].values) if ranked else []
    header = [*names, str(metric), *(["over seeds"] if repeated else []), *map(str, others)]
    lineage = any(trial.follows for trial in trials)
    header += [*(["begins with"] if lineage else [])]
    header += [*(["front"] if others else []), "epochs", "state", "minutes"]
    rows = []
    for point in ranked:
        states = [trial.state for trial in point.trials]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        rows.append(
            [
                *(format_value(value) for value in point.values.values()),
                f"{point.mean:.4g}" if point.measured else "",
                *([f"± {point.std:.2g} ({len(point.measured)})"] if repeated else []),
                *("" if math.isnan(mean) else f"{mean:.4g}" for mean in mean_scores(point, others)),
                *([", ".join(map(_beginning, point.trials))] if lineage else []),
                *(["yes" if point.trials[0].name in best else ""] if others else []),
                ", ".join(dict.fromkeys(str(trial.epochs) for trial in point.trials)),
                ", ".join(state if len(states) == 1 else f"{count} {state}" for state, count in counts.items()),
                f"{sum(trial.seconds for trial in point.trials) / 60:.1f}",
            ]
        )
    return header, rows


def _beginning(trial: Trial) -> str:
    """Return whose training a trial took up, and after which epoch."""
    return f"{trial.follows} after {trial.since}" if trial.follows else ""
