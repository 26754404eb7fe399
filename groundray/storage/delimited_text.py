"""Rows of delimited text, read one at a time: separators, quotes, and names of columns.

Where commas and semicolons separate, quotes are those of CSV. Where tabs or bars separate, a quote is text unless it
encloses a whole field; only a row that does not fit otherwise may have fields with separators or line ends in quotes.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# what a file that is no text begins with
SIGNATURES = {
    b"PK\x03\x04": "a workbook or zip file: save an Excel sheet as `CSV UTF-8`, or unpack the file",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save its sheet as `CSV UTF-8`",
    b"\x1f\x8b": "a gzip file: unpack it",
    b"%PDF": "a PDF file: copy its table into a text file",
}
SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", " ": "spaces"}  # in the order in which they are tried
EXCEL = re.compile(r'"?sep=(?P<separator>.)(?P=separator)*"?', re.IGNORECASE)
QUOTED = re.compile(r'"(?:[^"]|"")*"')


class DelimitedRow(NamedTuple):
    """A row of delimited text.

    Attributes:
        line: number of its first line.
        fields: stripped, without the quotes that enclose them.
        problem: why the line cannot be read; empty if it can.
    """

    line: int
    fields: list[str]
    problem: str = ""


def plain(title: str) -> str:
    """Normalise a column name to lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def unquoted(field: str) -> str:
    """Return a field stripped, and without the quotes that enclose it."""
    field = field.strip()
    return field[1:-1].replace('""', '"').strip() if QUOTED.fullmatch(field) else field


def csv_rows(lines: Iterable[tuple[int, str]], separator: str) -> Iterator[DelimitedRow]:
    """Yield the rows of CSV. A quote that closes some lines below, all of which are rows by themselves, is a problem.

    After a problem, reading goes on in the next line.

    Args:
        lines: numbers and texts of the lines that are not blank.
    """
    stream = _Lines(lines)
    while (row := _csv_row(stream, separator)) is not None:
        yield row


def delimited_rows(lines: Iterable[tuple[int, str]], separator: str, width: int) -> Iterator[DelimitedRow]:
    """Yield the rows of delimited text, each with `width` fields or a problem.

    An empty last field, as of rows that end with a separator, is left out.
    """
    stream = _Lines(lines)
    while True:
        fields: list[str] = []
        if separator in "\t|" and (line := stream.next()):
            number, text = line
            fields = [unquoted(part) for part in text.split(separator)]
            row = DelimitedRow(number, fields)
            if len(fields) != width and '"' in text:
                stream.put_back([line])
                row = _csv_row(stream, separator)
        else:
            row = _csv_row(stream, separator)
        if row is None:
            return
        if len(row.fields) == width + 1 and not row.fields[-1]:
            row = row._replace(fields=row.fields[:-1])
        if not row.problem and len(row.fields) != width:
            problem = (
                f"expected {width} fields as in the first row, got {len(row.fields)}: a field that holds a separator "
                "needs quotes"
            )
            row = DelimitedRow(row.line, [], problem)
        yield row


class _Lines:
    """Lines, some of which may be put back."""

    def __init__(self, lines: Iterable[tuple[int, str]]) -> None:
        self._lines, self._waiting = iter(lines), deque[tuple[int, str]]()

    def next(self) -> tuple[int, str] | None:
        return self._waiting.popleft() if self._waiting else next(self._lines, None)

    def put_back(self, lines: Iterable[tuple[int, str]]) -> None:
        self._waiting.extendleft(reversed(list(lines)))

    def texts(self, taken: list[tuple[int, str]]) -> Iterator[str]:
        """Yield the texts of lines, which are added to `taken`."""
        while line := self.next():
            taken.append(line)
            yield f"{line[1]}\n"


def _csv_row(stream: _Lines, separator: str) -> DelimitedRow | None:
    """Take a row of CSV; None at the end."""
    taken: list[tuple[int, str]] = []
    reader = csv.reader(stream.texts(taken), delimiter=separator, strict=True, skipinitialspace=separator != " ")
    fields, problem = [], ""
    try:
        fields = next(reader, [])
    except csv.Error as error:
        problem = f"expected a row of CSV, got one that cannot be read ({error})"
    if not taken:
        return None
    if not problem and len(taken) > 1 and all(line.count(separator) + 1 == len(fields) for _, line in taken):
        problem = (
            f"a quote opens here and closes in line {taken[-1][0]}, and all lines from here to there are rows by "
            "themselves: remove the quotes, or double them within quotes"
        )
    if problem:
        stream.put_back(taken[1:])
        return DelimitedRow(taken[0][0], [], problem)
    return DelimitedRow(taken[0][0], [field.strip() for field in fields])
