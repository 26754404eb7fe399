"""The parallel-coordinates plot of a sweep: a line for each trial, over an axis for each setting and metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D

from groundray.analysis.report.plotting import GREY, INK, ORANGE, PAPER, SHADES, legend, new, png, style
from groundray.runtime.tune.plot import are_numbers, better, place
from groundray.runtime.tune.results import Trial, best_trial
from groundray.runtime.tune.search_space import Space, format_value
from groundray.runtime.tune.spec import Metric

TICKS = 5  # of an axis of numbers


class Axis(NamedTuple):
    """An axis from 0, its lowest value, to 1.

    Attributes:
        title: below it.
        ticks: heights and their labels.
        heights: of each trial; None for one without a value.
    """

    title: str
    ticks: list[tuple[float, str]]
    heights: list[float | None]


@style()
def draw(
    file: Path, title: str, trials: Sequence[Trial], swept: Sequence[Space], metric: Metric, *others: Metric
) -> None:
    """Write a PNG with an axis for each swept setting, then one for each metric.

    The first metric colours a finished trial's line. The line of a trial that was stopped is grey and dashed, that of
    one without a value ends in a cross before the metrics. The best trial by the first metric is drawn last, in orange.
    """
    axes = [_setting_axis(space, trials) for space in swept]
    axes += [_metric_axis(shown, trials, bool(others)) for shown in (metric, *others)]
    figure = new(1.6 + 1.9 * len(axes), 4.6)
    panel = figure.subplots()
    values = _finite([trial.value for trial in trials if trial.state == "finished"])
    low, high = _limits(values)
    shades = matplotlib.colormaps[SHADES]
    winner = best_trial(trials, metric)
    for index, trial in enumerate(trials):
        colour = shades((trial.value - low) / (high - low)) if trial.value is not None else GREY
        _line(panel, [axis.heights[index] for axis in axes], trial, winner, colour)
    behind = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.5}  # of a label that lines cross
    for x, axis in enumerate(axes):
        panel.axvline(x, color=INK, linewidth=0.8, zorder=2)
        for height, text in axis.ticks:
            panel.annotate(
                text, (x, height), (4, 0), textcoords="offset points", fontsize=7, va="center", zorder=5, bbox=behind
            )
    panel.set_xticks(range(len(axes)), [axis.title for axis in axes])
    panel.set_xlim(-0.15, len(axes) - 0.6)
    panel.set_yticks([])
    panel.spines[["top", "right", "left", "bottom"]].set_visible(False)
    panel.tick_params(axis="x", length=0)
    if values:
        figure.colorbar(
            ScalarMappable(Normalize(low, high), shades),
            ax=panel,
            label=f"{metric}, {better(metric)} is better",
            pad=0.02,
        )
    figure.suptitle(f"{title}: {len(trials)} trials", fontsize=11)
    legend(figure, _handles(trials, winner))
    file.write_bytes(png(figure))


def _line(panel: Axes, heights: Sequence[float | None], trial: Trial, winner: Trial | None, colour: Any) -> None:
    known = [(x, height) for x, height in enumerate(heights) if height is not None]
    if not known:
        return
    has_all = len(known) == len(heights)
    look: dict[str, Any] = {"color": GREY, "linestyle": "--", "alpha": 0.6, "zorder": 1}
    if trial.state == "finished" and has_all:
        look = {"color": colour, "linestyle": "-", "zorder": 3}
    if trial == winner:
        look = {"color": ORANGE, "linestyle": "-", "linewidth": 2.5, "zorder": 4}
    panel.plot(*zip(*known, strict=True), **look)
    if not has_all:
        x, height = known[-1]
        panel.plot(x, height, "x", color=GREY, zorder=4)


def _handles(trials: Sequence[Trial], winner: Trial | None) -> dict[str, Line2D]:
    """Return the legend: only of what is drawn."""
    stopped = {trial.state for trial in trials if trial.state != "finished" and _finite([trial.value])}
    without = any(not _finite([trial.value]) for trial in trials)
    handles = {}
    if winner:
        handles["best"] = Line2D([], [], color=ORANGE, linewidth=2.5)
    if stopped:
        handles[f"trial that was {' or '.join(sorted(stopped))}"] = Line2D([], [], color=GREY, linestyle="--")
    if without:
        handles["trial without a value"] = Line2D([], [], color=GREY, linestyle="--", marker="x")
    return handles


def _setting_axis(space: Space, trials: Sequence[Trial]) -> Axis:
    logarithmic = are_numbers(space) and space.on_log_scale

    def scaled(value: Any) -> float:
        return math.log(value) if logarithmic else place(space, value)

    low, high = _limits([scaled(value) for value in space.values])
    heights: list[float | None] = [
        (scaled(trial.values[space.name]) - low) / (high - low) if space.name in trial.values else None
        for trial in trials
    ]
    if space.kind == "choice":
        ticks = [((scaled(value) - low) / (high - low), format_value(value)) for value in space.values]
    else:
        steps = [step / (TICKS - 1) for step in range(TICKS)]
        numbers = [low + step * (high - low) for step in steps]
        ticks = [(step, f"{math.exp(x) if logarithmic else x:.3g}") for step, x in zip(steps, numbers, strict=True)]
    return Axis(space.name.replace(".", ".\n"), ticks, heights)


def _metric_axis(metric: Metric, trials: Sequence[Trial], several: bool) -> Axis:
    values = [trial.scores.get(str(metric)) if several else trial.value for trial in trials]
    low, high = _limits(_finite(values))
    heights = [(value - low) / (high - low) if value is not None and math.isfinite(value) else None for value in values]
    steps = [step / (TICKS - 1) for step in range(TICKS)]
    ticks = [(step, f"{low + step * (high - low):.3g}") for step in steps] if any(x is not None for x in values) else []
    return Axis(str(metric).replace("/", "/\n"), ticks, heights)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and highest of some values, apart."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
