"""The tables and measures of analyses as files for other programs (CSV) and for papers (LaTeX with booktabs).

CSV has all rows and numbers without rounding; what is missing, or not finite, is empty. LaTeX has the first MOST_ROWS
rows and numbers as the report shows them.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from groundray.analysis.report.numbers import (
    ABOUT,
    MINUS,
    MISSING,
    format_interval,
    format_number,
    format_p,
)
from groundray.analysis.result import Analysis, Cell, Measure, ReadOff, Table

FOLDER = "tables"
MOST_ROWS = 200  # of a LaTeX table: several pages
LONGEST_NAME = 80  # characters of a file's name, without its ending
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row, \\ would take it for an option
    "]": "{]}",
    "*": "{*}",
    MINUS: "$-$",
    MISSING: "--",
    ABOUT: r"$\approx$",
    "\N{NO-BREAK SPACE}": "~",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")
SPECIAL = re.compile("|".join(map(re.escape, ESCAPES)))


@dataclass(frozen=True)
class TableFile:
    """A table in both forms: rows of whole cells, and rows of texts as the report shows them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown_columns: tuple[str, ...]
    shown: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]  # shown columns that are aligned right

    @classmethod
    def of(cls, table: Table) -> TableFile:
        shown = tuple(tuple(map(format_number, row)) for row in table.rows)
        numeric = tuple(
            any(isinstance(row[column], int | float) for row in table.rows) for column in range(len(table.columns))
        )
        return cls(table.title, table.columns, table.rows, table.columns, shown, numeric)

    def as_csv(self) -> bytes:
        """Return the table as CSV in UTF-8, with lines that end as RFC 4180 has them."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(self.columns)
        writer.writerows([_whole(cell) for cell in row] for row in self.rows)
        return text.getvalue().encode("utf-8", "replace")

    def as_latex(self) -> bytes:
        """Return the table as a LaTeX tabular, which needs the package booktabs."""
        more = len(self.shown) - MOST_ROWS
        lines = [
            f"% {_one_line(self.title)}; needs \\usepackage{{booktabs}}",
            *([f"% the first {MOST_ROWS} of {len(self.shown)} rows; the CSV file has all"] if more > 0 else []),
            f"\\begin{{tabular}}{{{''.join('r' if number else 'l' for number in self.numeric)}}}",
            "\\toprule",
            _latex_row(self.shown_columns),
            "\\midrule",
            *map(_latex_row, self.shown[:MOST_ROWS]),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def table_files(analyses: Iterable[Analysis]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file: measures, differences and tables of each analysis, in both forms."""
    taken: set[str] = set()
    for analysis in analyses:
        for table in _tables(analysis):
            title = table.title
            if not title.lower().startswith(analysis.name):
                title = f"{analysis.name}-{title}"
            name = _file_name(title, taken)
            yield f"{FOLDER}/{name}.csv", table.as_csv()
            yield f"{FOLDER}/{name}.tex", table.as_latex()


def latex(text: str) -> str:
    """Escape text for LaTeX, on one line."""
    return SPECIAL.sub(lambda found: ESCAPES[found[0]], _one_line(text))


def _tables(analysis: Analysis) -> Iterator[TableFile]:
    if analysis.measures:
        yield _measures(analysis.measures)
    if any(measure.differences for measure in analysis.measures):
        yield _differences(analysis.measures)
    yield from map(TableFile.of, analysis.tables)


def _measures(measures: Sequence[Measure]) -> TableFile:
    """Return a row for each measure and model, and to show one for each measure."""
    models = list(dict.fromkeys(model for measure in measures for model in measure.values))
    paper = list(dict.fromkeys(model for measure in measures for model in measure.published))
    rows: list[tuple[Cell, ...]] = []
    shown: list[tuple[str, ...]] = []
    for measure in measures:
        for model in dict.fromkeys((*measure.values, *measure.published)):
            value, published = measure.values.get(model), measure.published.get(model)
            ends = (value.value, value.low, value.high) if value else (None, None, None)
            how = None if published is None else "read off" if isinstance(published, ReadOff) else "printed"
            rows.append((measure.key, measure.name, measure.items, model, *ends, published, how))
        found = [measure.values.get(model) for model in models]
        own = [f"{format_number(one.value)} {format_interval(one)}".strip() if one else MISSING for one in found]
        theirs = [format_number(measure.published.get(model)) for model in paper]
        shown.append((measure.name, format_number(measure.items), *own, *theirs))
    return TableFile(
        "measures",
        ("key", "measure", "items", "model", "value", "low", "high", "published", "published_as"),
        tuple(rows),
        ("measure", "items", *models, *(f"published: {model}" for model in paper)),
        tuple(shown),
        (False, *([True] * (1 + len(models) + len(paper)))),
    )


def _differences(measures: Sequence[Measure]) -> TableFile:
    pairs = [(measure, one) for measure in measures for one in measure.differences]
    return TableFile(
        "differences",
        ("key", "measure", "items", "more_of", "than_of", "difference", "low", "high", "p"),
        tuple(
            (
                measure.key,
                measure.name,
                measure.items,
                one.other,
                one.first,
                one.value.value,
                one.value.low,
                one.value.high,
                one.p,
            )
            for measure, one in pairs
        ),
        ("measure", "more of", "than of", "difference", "95% interval", "p"),
        tuple(
            (
                measure.name,
                one.other,
                one.first,
                format_number(one.value.value),
                format_interval(one.value),
                format_p(one.p),
            )
            for measure, one in pairs
        ),
        (False, False, False, True, True, True),
    )


def _file_name(text: str, taken: set[str]) -> str:
    """Return a name of letters, digits and hyphens that is not taken, and take it."""
    name = re.sub(r"[\W_]+", "-", text.lower())[:LONGEST_NAME].strip("-")
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    free = next(one for one in numbered if one not in taken)
    taken.add(free)
    return free


def _whole(cell: Cell) -> str | int | float:
    """Return a cell of CSV, without loss; empty for a number that is not there."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return float(cell) if isinstance(cell, float) else cell


def _latex_row(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(latex, cells))} \\\\"


def _one_line(text: str) -> str:
    return CONTROL.sub(" ", text)
