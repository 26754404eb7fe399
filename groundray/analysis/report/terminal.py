"""What analyses found, on a screen: a line a measure, a column a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from rich.box import HORIZONTALS
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid

from groundray.analysis.measures.image_text_retrieval import ROWS, WAYS, Retrieval
from groundray.analysis.measures.relations import Relations
from groundray.analysis.report import document
from groundray.analysis.report.document import Report, compared, shown, shown_interval
from groundray.analysis.result import Measure, Value

MOST_ROWS = 20  # of a table on screen
CERTAIN = 0.05
MARGIN = 6  # columns of a table that its measure leaves out
LESSER = re.compile(r"lower_quartile|upper_quartile|^pc[2-9]")  # keys of measures that a short table leaves out


def comparison(made: Report, console: Console, short: bool) -> Grid:
    """The figures of every model, with their intervals and beside what is published where the screen is wide enough.

    Args:
        short: only the figures that say the most: not the outer quartiles, nor axes beyond the first.
    """
    options = console.options.update(max_width=10_000)
    whole, plain, bare = (_comparison(made, short, *shows) for shows in ((True, True), (False, True), (False, False)))
    if Measurement.get(console, options, whole).maximum <= console.width:
        return whole
    return plain if Measurement.get(console, options, plain).minimum + MARGIN <= console.width else bare


def _comparison(made: Report, short: bool, intervals: bool, beside: bool) -> Grid:
    models, published, rows = compared(made)
    published = published if beside else []
    kept = [(analysis, measure) for analysis, measure in rows if not short or not LESSER.search(measure.key)]
    told = ["in brackets 95% intervals" if intervals else "with intervals in the report"]
    told += [f"published: {' / '.join(published)}"] if published else []
    told += [f"{len(rows) - len(kept)} more figures in the report"] if len(kept) < len(rows) else []
    grid = Grid(title=made.title, caption="; ".join(told), caption_justify="left", box=HORIZONTALS, pad_edge=False)
    grid.add_column("measure", min_width=24)
    grid.add_column("n", justify="right", no_wrap=True)
    for model in models:
        grid.add_column(model, justify="right", no_wrap=True)
    if published:
        grid.add_column("published", justify="right", no_wrap=True, style="dim")
    for place, (analysis, measure) in enumerate(kept):
        last = place + 1 == len(kept) or kept[place + 1][0] is not analysis
        figures = [_figure(measure, model, intervals) for model in models]
        if published:
            figures.append(_joined(measure, published))
        grid.add_row(
            f"{analysis.name.replace('_', ' ')}  {measure.name}", f"{measure.items:,}", *figures, end_section=last
        )
    return grid


def _joined(measure: Measure, published: list[str]) -> str:
    """The published figures in one cell; empty where there is none."""
    return " / ".join(shown(measure.published.get(model)) for model in published) if measure.published else ""


def _figure(measure: Measure, model: str, intervals: bool) -> str:
    value: Value | None = measure.values.get(model)
    if value is None:
        return ""
    interval = shown_interval(value) if intervals else ""
    return f"{shown(value.value)} {interval}".strip()


def tables(made: Report) -> Iterator[Grid]:
    """The tables of all analyses, the first rows where one is long."""
    for one in (table for analysis in made.analyses for table in analysis.tables):
        title = one.title if len(one.rows) <= MOST_ROWS else f"{one.title} (the first {MOST_ROWS} of {len(one.rows)})"
        grid = Grid(title=title, box=HORIZONTALS, pad_edge=False)
        for place, column in enumerate(one.columns):
            numbers = any(isinstance(row[place], int | float) for row in one.rows)
            grid.add_column(column, justify="right" if numbers else "left")
        for row in one.rows[:MOST_ROWS]:
            grid.add_row(*map(shown, row))
        yield grid


def retrieval(found: Mapping[str, Retrieval]) -> Grid:
    """Recall and ranks of each stage, both ways."""
    first = next(iter(found.values()))
    grid = Grid(title=f"Retrieval among {first.images} images (chance recall@10 {first.chance:.3f})")
    grid.add_column("")
    for name in found:
        for way in WAYS:
            grid.add_column(f"{name}\n{way.replace('_', ' ')}", justify="right")
    for measure in ROWS:
        digits = 3 if measure.startswith("recall") else 1
        values = [one.metrics[f"{way}/{measure}"] for one in found.values() for way in WAYS]
        grid.add_row(measure.replace("_", " "), *(f"{value:.{digits}f}" for value in values))
    return grid


def relations(found: Relations) -> Grid:
    """Accuracy of predicates and objects, beside the same without the image and the majority."""
    left_out = [f"{count} {what}" for what, count in found.unknown.items() if count]
    caption = f"left out, of words that the model was not taught: {', '.join(left_out)}" if left_out else None
    grid = Grid(title=f"{found.triplets} relations between {found.objects} objects", caption=caption)
    for title in ("", "predicate", "without image", "object", "without image"):
        grid.add_column(title, justify="right" if title else "left")
    for top in [name.removeprefix("predicate/") for name in found.metrics if name.startswith("predicate/")]:
        values = [
            metrics[f"{what}/{top}"]
            for what in ("predicate", "object")
            for metrics in (found.metrics, found.without_image)
        ]
        grid.add_row(top.replace("top", "top-"), *(f"{value:.3f}" for value in values))
    grid.add_row("majority", f"{found.majority['predicate']:.3f}", "", f"{found.majority['object']:.3f}", "")
    return grid


def notes(made: Report) -> list[str]:
    """A line for everything that a reader must know: what was left out, what differs for certain, what is missing."""
    lines = []
    for analysis in made.analyses:
        if left_out := [f"{count:,} {what}" for what, count in analysis.left_out.items() if count]:
            lines.append(f"{analysis.name}  left out: {', '.join(left_out)}")
    tested = [one for *_, one in document.differences(made) if one.p is not None and math.isfinite(one.p)]
    if tested:
        certain = sum(one.p < CERTAIN for one in tested if one.p is not None)
        lines.append(f"{certain} of {len(tested)} tested differences between models have p < .05 (Holm, each measure)")
    lines += [f"{name}  not made: {reason}" for name, reason in made.skipped.items()]
    return [*lines, *(f"note  {note}" for note in made.notes)]
