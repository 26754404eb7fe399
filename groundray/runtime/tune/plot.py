"""The plot of a sweep: the metric against each swept setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from groundray.analysis.report.plotting import BLUE, GREY, ORANGE, legend, new, png, style, tidy
from groundray.runtime.tune.results import Point, Trial, best_trial, points
from groundray.runtime.tune.search_space import Space, format_value
from groundray.runtime.tune.spec import Metric


@style()
def draw(file: Path, title: str, trials: Sequence[Trial], swept: Sequence[Space], metric: Metric) -> None:
    """Write a PNG with one panel for each swept setting.

    A panel shows the metric of each trial, and its mean and standard deviation over seeds at each point. Unfinished
    trials are hollow, the best trial has a ring.
    """
    figure = new(1.2 + 4.8 * len(swept), 4.2)
    panels = figure.subplots(1, len(swept), sharey=True, squeeze=False)[0]
    measured = [point for point in points(trials, metric) if point.measured]
    winner = best_trial(trials, metric)
    for panel, space in zip(panels, swept, strict=True):
        _panel(panel, space, measured, winner, alone=len(swept) == 1)
    panels[0].set_ylabel(metric.name.replace("/", "\n"))
    better = "lower" if metric.mode == "min" else "higher"
    figure.suptitle(f"{title}: {metric.name} of stage {metric.stage}, {better} is better", fontsize=11)
    legend(figure)
    file.write_bytes(png(figure))


def _panel(panel: Axes, space: Space, measured: Sequence[Point], winner: Trial | None, alone: bool) -> None:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in space.values)

    def x(value: Any) -> float:
        return float(value) if numbers else float(space.values.index(value))

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
            if trial is winner and trial.value is not None:
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
    panel.set_xlabel(space.name)
    tidy(panel)
