"""Delimited text files on a local path or a URL. Errors name the line.

The encoding is the one that a byte order mark says, else UTF-8. Tabs, semicolons, commas or spaces separate the fields:
the first of these under which the first row has the columns that are needed, or the one of Excel's line `sep=;`. Blank
lines are skipped, as are lines of `#` before the first row.

Where commas and semicolons separate, quotes are those of CSV. Where tabs separate, a quote is text, as in the files of
Brysbaert, McRae and CSLB, unless it encloses a whole field; only a file whose lines do not fit otherwise may have
fields with tabs or line ends in quotes. A decimal comma is read where every number of the column can have one.

A column is found by its name, regardless of case and punctuation: `Human (mean)` is `human_mean`.
"""

from __future__ import annotations

import io
import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from groundray.storage.delimited_text import EXCEL, SEPARATORS, SIGNATURES, csv_rows, plain, unquoted
from groundray.storage.folder import Folder
from groundray.storage.text_encoding import decode_text, encoding_of

# a number that is missing, as R, pandas, Excel, SPSS and Stata write it, in small letters
MISSING = frozenset(("", "na", "n/a", "#n/a", "#na", "<na>", "nan", "#nan", "null", "none", ".", "-", "--", "?"))
NO_WORD = frozenset(("", "n/a", "#n/a", "<na>", ".", "-", "--", "?"))  # `nan`, `null`, `none` and `NA` are words
SPACED = re.compile(r'"(?:[^"]|"")*"(?=\s|$)|\S+')
COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
SENSE = re.compile(r"\s*\([^()]*\)$")  # the `(animal)` of McRae's `bat_(animal)`
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


@dataclass(frozen=True)
class Row:
    """Fields by column name, and the row's location for messages."""

    where: str
    fields: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a word or phrase, with underscores as spaces and single spaces; empty if it is missing."""
        text = spaced(self.fields[column])
        return "" if text.lower() in NO_WORD else text

    def number_if_any(self, column: str) -> float | None:
        """Return a finite number; None if the column or its number is missing (see MISSING).

        Raises:
            ValueError: the field is something else.
        """
        text = self.fields.get(column, "")
        return None if is_missing(text) else number(text, column, self.where)


@dataclass(frozen=True)
class Table:
    """Rows whose columns were found by name.

    Attributes:
        url: path or URL of the file.
        rows: in the file's order.
        layout: how the file was read, such as `columns Word, Conc.M; semicolons, decimal commas`.
        names: by which of its accepted names each column was found.
    """

    url: str
    rows: tuple[Row, ...]
    layout: str
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What was read of a file, for the report.

    Attributes:
        url: path or URL of the file or folder.
        layout: how it was read, such as `columns Word, Conc.M; tabs`.
        rows: its rows, or words.
        used: rows that the norms have.
        left_out: the others, by reason.
        notes: a line for each file that could not be used.
    """

    url: str
    layout: str
    rows: int
    used: int
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Content:
    """The text of a file.

    Attributes:
        lines: its lines that are not blank, with their numbers.
        separator: the one that a line `sep=` says, or None.
        encoding: as its byte order mark says.
    """

    url: str
    lines: tuple[tuple[int, str], ...]
    separator: str | None
    encoding: str

    def where(self, line: int) -> str:
        return f"{self.url} line {line}"

    def layout(self, separator: str, *others: str) -> str:
        """Describe how the file was read."""
        encoding = () if self.encoding == "utf-8" else (self.encoding.rpartition("-")[0].upper(),)
        return ", ".join((SEPARATORS.get(separator, f"separated by {separator!r}"), *others, *encoding))


def is_missing(text: str) -> bool:
    """Return whether a number is missing."""
    return text.strip().lower() in MISSING


def number(text: str, column: str, where: str) -> float:
    """Parse a finite number.

    Raises:
        ValueError: the text is not one.
    """
    try:
        value = math.nan if "_" in text else float(text)  # float reads 1_000 as 1000
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: expected a number as {column}, got {text!r}")
    return value


def spaced(text: str) -> str:
    """Replace underscores by spaces, and collapse and strip spaces."""
    return " ".join(text.replace("_", " ").split())


def without_sense(text: str) -> str:
    """Return a word without its sense in brackets, as `bat` for `bat (animal)`."""
    return SENSE.sub("", text)


def read_content(url: str | Path) -> Content:
    """Read a text file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no text, is in another encoding, or has no line.
    """
    at = Folder.at(url)
    if not at.filesystem.get_file_info(at.path).is_file:
        raise FileNotFoundError(f"expected a file at {url}, found {'a folder' if at.exists() else 'none'}")
    folder, name = posixpath.split(at.path)
    content = Folder(at.filesystem, folder).read_bytes(name)
    for signature, what in SIGNATURES.items():
        if content.startswith(signature):
            raise ValueError(f"{url}: expected text, got {what}")
    text = io.StringIO(decode_text(content, str(url)), newline=None)
    lines = [(number, line.rstrip("\n")) for number, line in enumerate(text, start=1) if line.strip()]
    excel = EXCEL.fullmatch(lines[0][1].rstrip(" ")) if lines else None
    lines = lines[1:] if excel else lines
    if not lines:
        raise ValueError(f"{url} is empty")
    return Content(str(url), tuple(lines), excel["separator"] if excel else None, encoding_of(content)[0])


def read_lines(url: str | Path) -> Iterator[tuple[str, str]]:
    """Return the lines that are not blank, with their locations."""
    content = read_content(url)
    for line, text in content.lines:
        yield content.where(line), text


def split_rows(content: Content, separator: str) -> list[tuple[int, list[str]]]:
    """Split a file into rows of stripped fields, the first row included, with the numbers of their lines.

    If every later row has a field more than the first, either the rows end with a separator, or they begin with their
    numbers, for which R writes no name.

    Raises:
        ValueError: a row has more or fewer fields than the first; a quote is not closed; or a quote in CSV closes some
            lines below, all of which are rows by themselves.
    """
    if separator not in "\t ":
        return _even(content, _quoted(content, separator))
    split = _spaces if separator == " " else lambda line: line.split(separator)
    try:
        return _even(content, [(number, [unquoted(part) for part in split(line)]) for number, line in content.lines])
    except ValueError:
        try:
            return _even(content, _quoted(content, separator))
        except ValueError:
            pass
        raise


def _spaces(line: str) -> list[str]:
    return SPACED.findall(line)


def _quoted(content: Content, separator: str) -> list[tuple[int, list[str]]]:
    """Split a file as CSV."""
    rows: list[tuple[int, list[str]]] = []
    for row in csv_rows(content.lines, separator):
        if row.problem:
            raise ValueError(f"{content.where(row.line)}: {row.problem}")
        rows.append((row.line, row.fields))
    return rows


def _even(content: Content, rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Return the rows that have any text, and check that they have equally many fields."""
    rows = [(number, fields) for number, fields in rows if any(fields)]
    rows = rows[_comments(rows) :]
    if not rows:
        raise ValueError(f"{content.url} is empty")
    (line, first), others = rows[0], rows[1:]
    if others and all(len(fields) == len(first) + 1 for _, fields in others):
        if all(not fields[-1] for _, fields in others):
            return [(line, first), *((number, fields[:-1]) for number, fields in others)]
        if all(fields[0] == str(count) for count, (_, fields) in enumerate(others, start=1)):
            return [(line, ["", *first]), *others]
    for number, fields in others:
        if len(fields) != len(first):
            raise ValueError(
                f"{content.where(number)}: expected {len(first)} fields as in the first row, got {len(fields)}: "
                "a field that holds a separator needs quotes"
            )
    return rows


def _comments(rows: Sequence[tuple[int, list[str]]]) -> int:
    """Return the number of rows of `#` at the start that have not as many fields as the row below all of them."""
    count = next((at for at, (_, fields) in enumerate(rows) if not fields[0].startswith("#")), 0)
    while count and len(rows[count - 1][1]) == len(rows[count][1]) > 1:
        count -= 1
    return count


def read_table(
    url: str | Path,
    columns: Mapping[str, tuple[str, ...]],
    optional: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
) -> Table:
    """Read a table whose first row names its columns.

    Args:
        columns: accepted names of each column, in order of preference. Other columns are ignored.
        optional: columns that may be missing.
        numbers: columns of numbers, whose decimal commas become points.

    Raises:
        ValueError: a column is missing or repeated, or there is no row.
    """
    content = read_content(url)
    needed = [known for column, known in columns.items() if column not in optional]
    attempts = [content.separator] if content.separator else list(SEPARATORS)
    failures: dict[str, ValueError] = {}
    widest, titles_of_widest, line_of_widest = 0, [""], content.lines[0][0]
    for separator in attempts:
        try:
            rows = split_rows(content, separator)
        except ValueError as error:
            rows = _header_of(content, separator)
            failures[separator] = error
        line, titles = rows[0]
        names = [plain(title) for title in titles]
        if all(any(name in names for name in known) for known in needed):
            if separator in failures:
                raise failures[separator]
            return _table(content, separator, columns, rows, numbers)
        if len(titles) > widest and (separator != " " or widest < 2):
            widest, titles_of_widest, line_of_widest = len(titles), titles, line
    names = [plain(title) for title in titles_of_widest]
    missing = next(known for known in needed if not any(name in names for name in known))
    raise ValueError(
        f"{content.where(line_of_widest)}: expected a column {' or '.join(missing)}, "
        f"got the columns {', '.join(titles_of_widest)}"
    )


def _header_of(content: Content, separator: str) -> list[tuple[int, list[str]]]:
    """Return the first row alone, of a file whose rows cannot be split."""
    for line, text in content.lines:
        fields = SPACED.findall(text) if separator == " " else text.split(separator)
        if not text.startswith("#"):
            return [(line, [unquoted(field) for field in fields])]
    return [(content.lines[0][0], [content.lines[0][1]])]


def _table(
    content: Content,
    separator: str,
    columns: Mapping[str, tuple[str, ...]],
    rows: Sequence[tuple[int, list[str]]],
    numbers: tuple[str, ...],
) -> Table:
    (line, titles), body = rows[0], rows[1:]
    names = [plain(title) for title in titles]
    positions: dict[str, int] = {}
    for column, known in columns.items():
        name = next((name for name in known if name in names), None)
        if name is None:
            continue
        if names.count(name) > 1:
            raise ValueError(f"{content.where(line)}: expected one column {name}, got {names.count(name)}")
        positions[column] = names.index(name)
    if not body:
        raise ValueError(f"{content.url} names its columns, and has no row")
    commas = [
        column
        for column in numbers
        if column in positions
        and has_decimal_commas(
            ((content.where(line), fields[positions[column]]) for line, fields in body), column, separator
        )
    ]
    made = []
    for line, fields in body:
        own = {column: fields[position] for column, position in positions.items()}
        own |= {column: own[column].replace(",", ".") for column in commas}
        made.append(Row(content.where(line), own))
    described = f"columns {', '.join(titles[position] for position in positions.values())}"
    layout = content.layout(separator, *(["decimal commas"] if commas else []))
    found = {column: names[position] for column, position in positions.items()}
    return Table(content.url, tuple(made), f"{described}; {layout}", found)


def has_decimal_commas(fields: Iterable[tuple[str, str]], column: str, separator: str) -> bool:
    """Return whether the numbers of a column have decimal commas.

    Args:
        fields: texts of the column with their locations.

    Raises:
        ValueError: some have decimal commas and others points, or the commas may be those of thousands.
    """
    comma: list[tuple[str, str]] = []
    point: tuple[str, str] | None = None
    for where, text in fields:
        if "," in text and re.fullmatch(r"[\d.,eE+-]+", text):
            if not COMMA.fullmatch(text):
                raise ValueError(f"{where}: expected a number as {column}, got {text!r}: write it without thousands")
            comma.append((where, text))
        elif "." in text and not is_missing(text):
            point = point or (where, text)
    if not comma:
        return False
    where, text = comma[0]
    if point:
        raise ValueError(
            f"{where}: expected decimal commas or points as {column}, got {text!r} beside {point[1]!r} "
            f"(line {point[0].rpartition(' ')[2]})"
        )
    if separator != ";" and all(THOUSANDS.fullmatch(number) for _, number in comma):
        raise ValueError(
            f"{where}: expected a number as {column}, got {text!r}, which may be {text.replace(',', '.')} or "
            f"{text.replace(',', '')}: write it in one of these ways"
        )
    return True
