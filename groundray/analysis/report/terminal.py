"""Analyses on a terminal: a line for each measure, a column for each model."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import HORIZONTALS
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Grid

from groundray.analysis.measures.relations import Relations
from groundray.analysis.report import document
from groundray.analysis.report.document import Report, compared, summary_of
from groundray.analysis.report.numbers import format_interval, format_number
from groundray.analysis.result import STRATUM, Measure, Table, Value

MOST_ROWS = 20  # of a table on screen
CERTAIN = 0.05
LESSER = re.compile(
    r"lower_quartile|upper_quartile|^pc[2-9]|^pc1/contrast|^without_own_words/rank/within|^published/.*_at_5$"
    rf"|{STRATUM}|/(group|dimension|section|own_words)/"
)  # keys of measures that a short table leaves out


@dataclass(frozen=True)
class _Layout:
    """The layout of the comparison, chosen by the width of the screen.

    Attributes:
        intervals: each figure's interval.
        published: a column of published figures.
        compact: an analysis's name above its measures, and a letter for each model.
    """

    intervals: bool = False
    published: bool = False
    compact: bool = False


LAYOUTS = (_Layout(True, True), _Layout(published=True), _Layout(), _Layout(compact=True))  # widest first


def comparison(made: Report, console: Console, short: bool) -> Grid:
    """Return the table of every model's figures, a line for each measure, as detailed as the console's width allows.

    Args:
        short: leave out the outer quartiles, axes beyond the first, contrasts, all but one rank without a phrase's
            words, strata, and parts of ratings and of analogies.
    """
    options = console.options.update(max_width=10_000)
    grids = [_comparison(made, short, layout) for layout in LAYOUTS]
    fitting = (grid for grid in grids if Measurement.get(console, options, grid).maximum <= console.width)
    return next(fitting, grids[-1])


def _comparison(made: Report, short: bool, layout: _Layout) -> Grid:
    models, published, rows = compared(made)
    published = published if layout.published else []
    kept = [(analysis, measure) for analysis, measure in rows if not short or not LESSER.search(measure.key)]
    letters = dict(zip(models, string.ascii_uppercase, strict=False)) if layout.compact else {}
    notes = [", ".join(f"{letter}: {model}" for model, letter in letters.items())] if letters else []
    notes += ["in brackets 95% intervals" if layout.intervals else "with intervals in the report"]
    notes += [f"published: {' / '.join(published)}"] if published else []
    notes += [f"{len(rows) - len(kept)} more figures in the report"] if len(kept) < len(rows) else []
    grid = Grid(title=made.title, caption="; ".join(notes), caption_justify="left", box=HORIZONTALS, pad_edge=False)
    if layout.compact:
        grid.show_edge, grid.padding = False, (0, 0, 0, 0)
    grid.add_column("measure", min_width=24)
    grid.add_column("n", justify="right", no_wrap=True)
    for model in models:
        grid.add_column(letters.get(model, model), justify="right", no_wrap=True)
    if published:
        grid.add_column("published", justify="right", no_wrap=True, style="dim")
    for row, (analysis, measure) in enumerate(kept):
        name = analysis.name.replace("_", " ")
        first = row == 0 or kept[row - 1][0] is not analysis
        last = row + 1 == len(kept) or kept[row + 1][0] is not analysis
        figures = [_figure(measure, model, layout.intervals) for model in models]
        if published:
            figures.append(_joined(measure, published))
        if layout.compact and first:
            grid.add_row(name, style="bold")
        title = measure.name if layout.compact else f"{name}  {measure.name}"
        grid.add_row(title, f"{measure.items:,}", *figures, end_section=last)
    return grid


def _joined(measure: Measure, published: list[str]) -> str:
    """The published figures in one cell; empty where there is none."""
    return " / ".join(format_number(measure.published.get(model)) for model in published) if measure.published else ""


def _figure(measure: Measure, model: str, intervals: bool) -> str:
    value: Value | None = measure.values.get(model)
    if value is None:
        return ""
    interval = format_interval(value) if intervals else ""
    return f"{format_number(value.value)} {interval}".strip()


def tables(made: Report) -> Iterator[Grid]:
    """The tables of all analyses, the first rows where one is long."""
    for analysis in made.analyses:
        yield from map(table, analysis.tables)


def table(one: Table) -> Grid:
    """Return a table, the first rows where it is long."""
    title = one.title if len(one.rows) <= MOST_ROWS else f"{one.title} (the first {MOST_ROWS} of {len(one.rows)})"
    grid = Grid(title=title, box=HORIZONTALS, pad_edge=False)
    for place, column in enumerate(one.columns):
        numbers = any(isinstance(row[place], int | float) for row in one.rows)
        grid.add_column(column, justify="right" if numbers else "left")
    for row in one.rows[:MOST_ROWS]:
        grid.add_row(*map(format_number, row))
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


def summary(report: Report) -> list[str]:
    """Return the sentences of the report's summary, one a line."""
    overview = summary_of(report)
    against = f" against {overview.control}" if overview.control else ""
    return [f"summary  {overview.treatment}{against}", *(f"  {sentence}" for sentence in overview.sentences)]
