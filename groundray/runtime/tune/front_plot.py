"""The plot of a sweep's Pareto front: several metrics against each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from groundray.analysis.report.plotting import BLUE, GREY, ORANGE, legend, new, png, style, tidy
from groundray.runtime.tune.plot import better
from groundray.runtime.tune.results import Point, Trial, front, mean_scores, points, valued_by
from groundray.runtime.tune.search_space import format_value
from groundray.runtime.tune.spec import Metric


@style()
def draw(file: Path, title: str, trials: Sequence[Trial], metrics: Sequence[Metric]) -> None:
    """Write a PNG with one panel for each pair of metrics.

    Each point of the sweep is a mean over seeds. Those of the front have a ring, their values beside it, and, with two
    metrics, a line from one to the next; those without a finished trial are hollow.
    """
    pairs = list(itertools.combinations(range(len(metrics)), 2))
    figure = new(1.0 + 5.4 * len(pairs), 4.6)
    best = front(trials, metrics)
    others = [point for point in points(valued_by(trials, metrics[0]), metrics[0]) if point not in best]
    for panel, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        _panel(panel, best, others, [metrics[x], metrics[y]], connected=len(metrics) == 2)
    figure.suptitle(f"{title}: {len(best)} of {len(best) + len(others)} points are on the front", fontsize=11)
    legend(figure)
    file.write_bytes(png(figure))


def _panel(
    panel: Axes, best: Sequence[Point], others: Sequence[Point], metrics: Sequence[Metric], connected: bool
) -> None:
    for point in others:
        x, y = mean_scores(point, metrics)
        if math.isfinite(x) and math.isfinite(y):
            label = "point" if point.finished else "point without a finished trial"
            colour = BLUE if point.finished else GREY
            face = colour if point.finished else "white"
            panel.plot(x, y, "o", markersize=6, markeredgecolor=colour, markerfacecolor=face, label=label)
    placed = sorted((*mean_scores(point, metrics), index) for index, point in enumerate(best))
    if connected and len(placed) > 1:
        panel.plot([x for x, _, _ in placed], [y for _, y, _ in placed], color=ORANGE, alpha=0.5, zorder=1)
    for x, y, index in placed:
        panel.plot(x, y, "o", markersize=6, color=BLUE)
        panel.plot(x, y, "o", markersize=13, markerfacecolor="none", markeredgecolor=ORANGE, label="point on the front")
        text = ", ".join(map(format_value, best[index].values.values()))
        panel.annotate(text, (x, y), (9, 6), textcoords="offset points", fontsize=7, color=GREY)
    for metric, write in zip(metrics, (panel.set_xlabel, panel.set_ylabel), strict=True):
        write(f"{metric}, {better(metric)} is better")
    panel.margins(0.15)
    tidy(panel)
