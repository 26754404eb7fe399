"""The pictures of an analysis: measures with their intervals, words in a plane, distributions over items, bars."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from groundray.analysis.report.labels import NEAR, place
from groundray.analysis.report.numbers import MISSING
from groundray.analysis.report.plotting import (
    GREY,
    INK,
    ORANGE,
    PAPER,
    SHADES,
    Drawing,
    Look,
    legend,
    look,
    marker,
    new,
    settle,
    style,
    tidy,
)
from groundray.analysis.result import STRATUM, Analysis, Bars, Lists, Measure, Picture, Point, Scatter, Spread, Value

PANEL = (5.4, 4.7)  # inches
MAX_LEGEND_GROUPS = 12  # more groups are named at their place, without a legend
MAX_VECTOR_POINTS = 1500  # more points are rasterized within an SVG
MOST_UPRIGHT = 10  # groups of bars; more are drawn in rows
GAP = 4.0  # distance of a name from its point, in points (1/72 inch)
BAND = (5, 95)  # percentiles at the whiskers' ends


def pictures(analysis: Analysis, models: Sequence[str] = ()) -> Iterator[tuple[str, str, Drawing]]:
    """Yield the name, the title and the drawing of each picture of an analysis, its measures first.

    Args:
        models: all models, so that each looks the same in the pictures of all analyses.
    """
    if whole := [measure for measure in analysis.measures if STRATUM not in measure.key]:
        title = "With 95% intervals; hollow: published by the paper"
        yield "measures", title, partial(forest, whole, models)
    for picture in analysis.pictures:
        yield picture.key.replace("/", "-"), picture.title, partial(_drawn, picture, models)


def _drawn(picture: Picture, models: Sequence[str]) -> Figure:
    match picture:
        case Scatter():
            return scatter(picture)
        case Spread():
            return spread(picture, models)
        case Bars():
            return bars(picture, models)
        case Lists():
            return lists(picture)


@style()
def forest(measures: Sequence[Measure], known: Sequence[str] = ()) -> Figure:
    """Draw a panel for each measure, with a row for each model: its value, its interval, and the published value."""
    looks = _looks((name for measure in measures for name in (*measure.values, *measure.published)), known)
    columns = min(len(measures), 3)
    rows = math.ceil(len(measures) / columns)
    figure = new(1.3 + 3.2 * columns, 0.5 + (0.75 + 0.21 * len(looks)) * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for number, (panel, measure) in enumerate(zip(panels, measures, strict=False)):
        _forest_panel(panel, measure, looks, named=number % columns == 0)
    for panel in panels[len(measures) :]:
        panel.set_axis_off()
    handles = {"measured, with its 95% interval": marker(look(0))}
    if any(measure.published for measure in measures):
        handles["published"] = marker(look(0), hollow=True)
    legend(figure, handles)
    settle(figure)
    return figure


def _forest_panel(panel: Axes, measure: Measure, looks: Mapping[str, Look], named: bool) -> None:
    for row, (model, (colour, shape)) in enumerate(looks.items()):
        published = measure.published.get(model)
        if published is not None and math.isfinite(published):
            panel.plot(published, row, shape, color=colour, markerfacecolor=PAPER, markersize=8, zorder=2)
        value = measure.values.get(model)
        if value is None:
            continue
        if not math.isfinite(value.value):
            panel.annotate("not a number", (0.02, row), xycoords=("axes fraction", "data"), va="center", color=GREY)
            continue
        panel.plot(_interval(value), (row, row), color=colour, linewidth=1.8, zorder=3)
        panel.plot(value.value, row, shape, color=colour, markersize=5, markeredgecolor=PAPER, zorder=4)
    panel.set_yticks(range(len(looks)), list(looks) if named else [])
    panel.set_ylim(len(looks) - 0.5, -0.5)
    panel.locator_params(axis="x", nbins=5)
    panel.margins(x=0.08)
    panel.set_title(_wrapped(f"{measure.name} (n\u00a0=\u00a0{measure.items:,})", 42), loc="left", fontsize=8.5)
    tidy(panel)


def _looks(models: Iterable[str], known: Sequence[str]) -> dict[str, Look]:
    """Return the look of each model: known models by their index, then the others."""
    present = set(models := list(models))
    ordered = enumerate(dict.fromkeys((*known, *models)))
    return {model: look(number) for number, model in ordered if model in present}


def _interval(value: Value) -> tuple[float, float]:
    """Return the ends of a value's interval, or the value twice if there is none."""
    ends = (value.low, value.high)
    low, high = (value.value if end is None or not math.isfinite(end) else end for end in ends)
    return low, high


@style()
def scatter(picture: Scatter) -> Figure:
    """Draw a panel for each model: its words, coloured by shade or by group, with names.

    Names do not overlap. Names without room are omitted, and the panel's title counts them.
    """
    drawn = {model: _finite(points) for model, points in picture.panels.items()}
    every = [point for points in drawn.values() for point in points]
    groups = list(dict.fromkeys(point.group for point in every if point.group is not None))
    looks = {group: look(number) for number, group in enumerate(groups)}
    shades = [point.shade for point in every if point.shade is not None] if picture.shade else []
    columns = min(len(drawn), 2 if len(drawn) <= 4 else 3) or 1
    rows = math.ceil(len(drawn) / columns) or 1
    figure = new(PANEL[0] * columns + (0.9 if shades else 0), PANEL[1] * rows + (0.4 if groups else 0))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    limits = (min(shades), max(shades)) if shades else None
    mapped = None
    for panel, (model, points) in zip(panels, drawn.items(), strict=False):
        mapped = _scatter_panel(panel, points, looks, limits) or mapped
        if picture.line:
            _regression(panel, points)
        odd = len(picture.panels[model]) - len(points)
        panel.set_title(f"{model} ({odd} not finite)" if odd else model, loc="left")
        panel.set_xlabel(picture.x)
        panel.set_ylabel(picture.y)
        tidy(panel)
        if not picture.x and not picture.y:  # axes without a meaning
            panel.tick_params(length=0, labelbottom=False, labelleft=False)
    for panel in panels[len(drawn) :]:
        panel.set_axis_off()
    if mapped is not None:
        figure.colorbar(mapped, ax=panels.tolist(), label=picture.shade, shrink=0.7, pad=0.02)
    if 1 < len(groups) <= MAX_LEGEND_GROUPS:
        shown = {group: Look(GREY if shades else one.colour, one.shape) for group, one in looks.items()}
        legend(figure, {group: marker(one) for group, one in shown.items()}, columns=5)

    settle(figure)  # fixes the panels' places, so that names can be fitted in
    for panel, points in zip(panels, drawn.values(), strict=False):
        names = [(point.text, point.x, point.y, GREY) for point in points if point.named]
        if len(groups) > MAX_LEGEND_GROUPS:
            names += [(group, *_middle(points, group), looks[group].colour) for group in _by_size(points)]
        if missing := _write_names(panel, names, points):
            panel.set_title(f"{panel.get_title(loc='left')} ({missing} of {len(names)} names had no room)", loc="left")
    return figure


def _scatter_panel(
    panel: Axes, points: Sequence[Point], looks: Mapping[str, Look], limits: tuple[float, float] | None
) -> PathCollection | None:
    """Draw the points, and return the collection for a colour bar if they are shaded."""
    size = 26 if len(points) <= 150 else 12 if len(points) <= 1500 else 4
    shape_only = len(looks) <= MAX_LEGEND_GROUPS
    mapped = None
    for group in dict.fromkeys(point.group for point in points):
        members = [point for point in points if point.group == group]
        colour, shape = looks.get(group or "", Look(GREY, "o"))
        for shaded in (False, True):
            some = [point for point in members if (limits is not None and point.shade is not None) is shaded]
            if not some:
                continue
            marks = panel.scatter(
                [point.x for point in some],
                [point.y for point in some],
                s=size,
                c=np.array([point.shade for point in some], float) if shaded else GREY if limits else colour,
                cmap=SHADES if shaded else None,
                vmin=limits[0] if limits and shaded else None,
                vmax=limits[1] if limits and shaded else None,
                marker=shape if shape_only else "o",
                linewidths=0.4 if size > 4 else 0,
                edgecolors=GREY if shaded else PAPER,  # the darkest shade needs an edge on a dark page
                rasterized=len(points) > MAX_VECTOR_POINTS,
            )
            mapped = marks if shaded else mapped
    return mapped


def _regression(panel: Axes, points: Sequence[Point]) -> None:
    """Draw the least-squares line of y on x over the points' range; none if all have the same x."""
    x, y = (np.array(values) for values in ([point.x for point in points], [point.y for point in points]))
    if len(points) < 2 or np.ptp(x) <= 1e-12 * np.abs(x).max():
        return
    ends = np.array([x.min(), x.max()])
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    panel.plot(ends, y.mean() + slope * (ends - x.mean()), color=GREY, linewidth=1.2, linestyle="--", zorder=1.5)


def _write_names(panel: Axes, names: Sequence[tuple[str, float, float, str]], points: Sequence[Point]) -> int:
    """Write names beside their points, with a thin line to distant ones. Return how many had no room."""
    figure = panel.figure
    scale = figure.dpi / 72
    written: list[Annotation] = []
    for text, x, y, colour in names:
        note = panel.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5,
            zorder=6,
            bbox={"facecolor": PAPER, "alpha": 0.7, "linewidth": 0, "pad": 0.4},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
        )
        note.set_in_layout(False)
        written.append(note)
    if not written:
        return 0
    extents = [note.get_window_extent() for note in written]
    sizes = np.array([(box.width, box.height) for box in extents]) + scale  # a printer may round a letter up
    places = panel.transData.transform([(x, y) for _, x, y, _ in names])
    obstacles = panel.transData.transform([(point.x, point.y) for point in points])
    area = panel.get_window_extent()
    boxes = place(sizes, places, (area.x0, area.y0, area.x1, area.y1), obstacles, GAP * scale)
    for note, spot, box in zip(written, places, boxes, strict=True):
        if box is None:
            note.remove()
            continue
        left, bottom, right, top = box
        note.set_position(((left + right) / 2 / scale - spot[0] / scale, (bottom + top) / 2 / scale - spot[1] / scale))
        note.set(horizontalalignment="center", verticalalignment="center")
        away = math.dist(spot, (min(max(spot[0], left), right), min(max(spot[1], bottom), top)))
        if note.arrow_patch is not None:
            note.arrow_patch.set_visible(away > NEAR * GAP * scale)
    return boxes.count(None)


@style()
def spread(picture: Spread, known: Sequence[str] = ()) -> Figure:
    """Draw a row for each group and model: a box between the quartiles with the median, whiskers to the 5th and 95th
    percentiles, and every item behind them."""
    looks = _looks((model for of_group in picture.groups.values() for model in of_group), known)
    models = list(looks)
    labels = {
        group: _wrapped(f"{group} (n\u00a0=\u00a0{_counts(found)})", 34) for group, found in picture.groups.items()
    }
    figure = new(7.2, 1.1 + len(labels) * (0.12 + 0.25 * len(models)))
    panel = figure.subplots()
    step = 1 / (len(models) + 0.6)
    for row, found in enumerate(picture.groups.values()):
        for model, values in found.items():
            where = row - 0.5 + step * (models.index(model) + 0.8)
            _spread_row(panel, np.array([value for value in values if math.isfinite(value)]), where, step, looks[model])
    panel.set_yticks(range(len(labels)), list(labels.values()))
    panel.set_ylim(len(labels) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(picture.y)
    panel.use_sticky_edges = False  # bars would pin the edge to 0
    panel.margins(x=0.04)
    tidy(panel)
    panel.grid(visible=False, axis="y")
    for edge in range(1, len(labels)):
        panel.axhline(edge - 0.5, color=GREY, linewidth=0.4, alpha=0.5)
    legend(figure, {model: marker(one) for model, one in looks.items()})
    settle(figure)
    return figure


def _spread_row(panel: Axes, values: np.ndarray, where: float, step: float, look: Look) -> None:
    if len(values) == 0:
        panel.annotate("none", (0.01, where), xycoords=("axes fraction", "data"), va="center", color=GREY, fontsize=7)
        return
    jitter = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * step * 0.7
    many = len(values) > MAX_VECTOR_POINTS / 5
    panel.scatter(
        values, where + jitter, s=4 if many else 10, color=look.colour, alpha=0.4, linewidths=0, rasterized=many
    )
    lowest, low, middle, high, highest = np.percentile(values, (BAND[0], 25, 50, 75, BAND[1]))
    panel.plot((lowest, highest), (where, where), color=look.colour, linewidth=1, zorder=3)
    panel.barh(
        where, high - low, step * 0.62, left=low, facecolor=PAPER, edgecolor=look.colour, linewidth=1.3, zorder=4
    )
    panel.plot(middle, where, look.shape, color=look.colour, markersize=5.5, markeredgecolor=PAPER, zorder=5)


@style()
def bars(picture: Bars, known: Sequence[str] = ()) -> Figure:
    """Draw a bar from 0 for each group and model, with the value's marker and interval: side by side, or in rows if
    there are more than MOST_UPRIGHT groups. A value that is not finite has a dash in its place."""
    looks = _looks((model for of_group in picture.groups.values() for model in of_group), known)
    upright = len(picture.groups) <= MOST_UPRIGHT
    step = 1 / (len(looks) + 0.6)
    width = (
        max(0.95, 0.3 + 0.2 * len(looks)) if upright else 0.12 + 0.13 * len(looks)
    )  # a name is up to 0.95 inches wide
    length = 1.2 + len(picture.groups) * width
    figure = new(max(4.5, length), 3.6) if upright else new(7.2, length)
    panel = figure.subplots()
    for group, found in enumerate(picture.groups.values()):
        for number, (model, one) in enumerate(looks.items()):
            if model in found:
                _bar(panel, found[model], group - 0.5 + step * (number + 0.8), step, one, upright)
    named = [
        _wrapped(
            f"{group} (n\u00a0=\u00a0{picture.items[group]:,})" if group in picture.items else group,
            14 if upright else 34,
        )
        for group in picture.groups
    ]
    places, ends = range(len(named)), (-0.5, len(named) - 0.5)
    if upright:
        panel.set_xticks(places, named)
        panel.set_xlim(*ends)
        panel.set_ylabel(picture.y)
        panel.axhline(0, color=GREY, linewidth=0.8)
    else:
        panel.set_yticks(places, named)
        panel.set_ylim(*reversed(ends))
        panel.set_xlabel(picture.y)
        panel.axvline(0, color=GREY, linewidth=0.8)
    panel.tick_params(axis="x" if upright else "y", length=0)
    tidy(panel)
    panel.grid(visible=False, axis="x" if upright else "y")
    legend(figure, {model: marker(one) for model, one in looks.items()})
    settle(figure)
    return figure


def _bar(panel: Axes, value: Value, where: float, step: float, look: Look, upright: bool) -> None:
    if not math.isfinite(value.value):
        at = (where, 0.0) if upright else (0.0, where)
        panel.annotate(
            MISSING, at, ha="center" if upright else "left", va="bottom" if upright else "center", color=GREY
        )
        return
    draw = panel.bar if upright else panel.barh
    draw(where, value.value, step * 0.8, color=look.colour, alpha=0.45, linewidth=0)
    line, point = ((where, where), _interval(value)), (where, value.value)
    if not upright:
        line, point = line[::-1], point[::-1]
    panel.plot(*line, color=look.colour, linewidth=1.6, zorder=3)
    panel.plot(*point, look.shape, color=look.colour, markersize=5, markeredgecolor=PAPER, zorder=4)


def _counts(found: Mapping[str, Sequence[float]]) -> str:
    """Return the number of items of each model, or one number if all are equal."""
    return " / ".join(dict.fromkeys(f"{len(values):,}" for values in found.values()))


@style()
def lists(picture: Lists) -> Figure:
    """Draw the words of the first model at the left and those of the second at the right, with their ranks, in rows
    from above; a line joins equal words, and dots stand for ranks that are left out. Images are in a row below."""
    rows = {model: _list_rows([one.rank for one in words]) for model, words in picture.lists.items()}
    height = max(at[-1] for at in rows.values() if at) + 1 if any(rows.values()) else 1
    strip = 1.1 if picture.images else 0.0
    figure = new(6.4, 0.5 + 0.24 * height + strip)
    grid = figure.add_gridspec(2 if strip else 1, 1, height_ratios=[0.5 + 0.24 * height, strip] if strip else None)
    panel = figure.add_subplot(grid[0])
    panel.set(xlim=(0, 1), ylim=(height - 0.4, -1.4))
    panel.set_axis_off()
    ends: list[dict[str, float]] = []
    for side, (model, words) in enumerate(picture.lists.items()):
        edge, away, towards = (0.36, -1, "right") if side == 0 else (0.64, 1, "left")
        panel.text(edge, -1, model, ha=towards, va="center", weight="bold")
        for one, at in zip(words, rows[model], strict=True):
            bold = "bold" if one.marked else "normal"
            panel.text(edge, at, f"{one.rank:,}", ha=towards, va="center", color=GREY, fontsize=7.5)
            colour = ORANGE if one.marked else INK
            panel.text(edge + away * 0.075, at, one.text, ha=towards, va="center", weight=bold, color=colour)
        for before, after in pairwise(rows[model]):
            if after - before > 1:
                panel.text(
                    edge + away * 0.075, before + 1, "\N{VERTICAL ELLIPSIS}", ha=towards, va="center", color=GREY
                )
        ends.append({one.text: at for one, at in zip(words, rows[model], strict=True)})
    marked = {one.text for words in picture.lists.values() for one in words if one.marked}
    first, *others = ends
    for text in (text for text in first if others and text in others[0]):
        own = text in marked
        panel.plot(
            (0.375, 0.625),
            (first[text], others[0][text]),
            color=ORANGE if own else GREY,
            linewidth=1.8 if own else 0.8,
            zorder=3 if own else 2,
        )
    if strip:
        frames = grid[1].subgridspec(1, len(picture.images)).subplots(squeeze=False)[0]
        for frame, content in zip(frames, picture.images, strict=True):
            frame.imshow(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), interpolation="antialiased")
            frame.set_axis_off()
    settle(figure)
    return figure


def _list_rows(ranks: Sequence[int]) -> list[int]:
    """Return the row of each word of a list, with a free row where ranks are left out."""
    at: list[int] = []
    for number, rank in enumerate(ranks):
        gap = rank > (ranks[number - 1] if number else 0) + 1
        at.append((at[-1] + 1 if at else 0) + gap)
    return at


def _finite(points: Iterable[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]


def _by_size(points: Sequence[Point]) -> list[str]:
    """Return the groups of the points, largest first."""
    sizes: dict[str, int] = {}
    for point in points:
        if point.group is not None:
            sizes[point.group] = sizes.get(point.group, 0) + 1
    return sorted(sizes, key=lambda group: -sizes[group])


def _middle(points: Sequence[Point], group: str) -> tuple[float, float]:
    """Return the median of a group's points, coordinate by coordinate."""
    members = [(point.x, point.y) for point in points if point.group == group]
    x, y = np.median(members, axis=0)
    return float(x), float(y)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text
