"""The plot of a sweep: each metric against each swept setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from groundray.analysis.report.plotting import BLUE, GREY, ORANGE, legend, new, png, style, tidy
from groundray.runtime.tune.results import Point, Trial, best_trial, points, valued_by
from groundray.runtime.tune.search_space import Space, format_value
from groundray.runtime.tune.spec import Metric


@style()
def draw(
    file: Path, title: str, trials: Sequence[Trial], swept: Sequence[Space], metric: Metric, *others: Metric
) -> None:
    """Write a PNG with one panel for each swept setting, and one row of them for each metric.

    A panel shows the metric of each trial, and its mean and standard deviation over seeds at each point. Unfinished
    trials are hollow, the best trial by the metric has a ring.
    """
    metrics = (metric, *others)
    figure = new(1.2 + 4.8 * len(swept), 0.6 + 3.6 * len(metrics))
    rows = figure.subplots(len(metrics), len(swept), sharey="row", sharex="col", squeeze=False)
    for row, shown in zip(rows, metrics, strict=True):
        valued = valued_by(trials, shown) if others else trials
        measured = [point for point in points(valued, shown) if point.measured]
        winner = best_trial(valued, shown)
        for panel, space in zip(row, swept, strict=True):
            _panel(panel, space, measured, winner, alone=len(swept) == 1)
        row[0].set_ylabel((shown.name if not others else f"{shown}, {better(shown)} is better").replace("/", "\n"))
    for panel, space in zip(rows[-1], swept, strict=True):
        panel.set_xlabel(space.name)
    subtitle = ", ".join(map(str, metrics)) if others else f"{metric.name} of stage {metric.stage}"
    figure.suptitle(f"{title}: {subtitle}" + ("" if others else f", {better(metric)} is better"), fontsize=11)
    legend(figure)
    file.write_bytes(png(figure))


def better(metric: Metric) -> str:
    """Return which values of a metric are better, in a word."""
    return "lower" if metric.mode == "min" else "higher"


def are_numbers(space: Space) -> bool:
    """True if a setting's values have their place on an axis; other values stand side by side."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in space.values)


def place(space: Space, value: Any) -> float:
    """Return where a value stands on its setting's axis."""
    return float(value) if are_numbers(space) else float(space.values.index(value))


def _panel(panel: Axes, space: Space, measured: Sequence[Point], winner: Trial | None, alone: bool) -> None:
    numbers = are_numbers(space)

    def x(value: Any) -> float:
        return place(space, value)

    ordered = sorted(measured, key=lambda point: x(point.values[space.name]))
    if alone and len(ordered) > 1 and numbers:
        line = [(x(point.values[space.name]), point.mean) for point in ordered]
        panel.plot(*zip(*line, strict=True), color=BLUE, alpha=0.35, zorder=1)
    for point in ordered:
        position = x(point.values[space.name])
        if len(point.measured) > 1:
            panel.errorbar(
                position, point.mean, point.std, color=BLUE, capsize=5, zorder=2, label="mean ± sd over seeds", fmt="_"
            )
        for trial in point.trials:
            if trial.value is not None:
                finished = trial.state == "finished"
                panel.plot(
                    position,
                    trial.value,
                    "o",
                    markersize=6,
                    markeredgecolor=BLUE if finished else GREY,
                    markerfacecolor=BLUE if finished else "white",
                    zorder=3,
                    label="trial" if finished else f"trial that was {trial.state}",
                )
            if trial == winner and trial.value is not None:
                panel.plot(
                    position,
                    trial.value,
                    "o",
                    markersize=13,
                    markerfacecolor="none",
                    markeredgecolor=ORANGE,
                    label="best",
                )
    if numbers and space.on_log_scale:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
    if space.kind == "choice":
        panel.set_xticks([x(value) for value in space.values], [format_value(value) for value in space.values])
        panel.minorticks_off()
    tidy(panel)
