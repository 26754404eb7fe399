"""Delimited text files on a local path or a URL. Errors name the line.

UTF-8, with a byte order mark or without. Rows are separated by tabs where the first line has one, else by commas, with
quotes as in CSV. A column is found by its name, regardless of case and punctuation: `Human (mean)` is
`human_mean`. Blank lines are skipped.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from groundray.storage.folder import Folder

MISSING = ("", "na", "n/a", "nan", "null", "none", ".", "-")
ZIP = b"PK\x03\x04"  # first bytes of an Excel workbook


@dataclass(frozen=True)
class Row:
    """Fields by column name, and the row's location for messages."""

    where: str
    fields: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return a word or phrase, with underscores as spaces and single spaces.

        Raises:
            ValueError: the field is empty.
        """
        found = spaced(self.fields[column])
        if not found:
            raise ValueError(f"{self.where}: expected a {column}, got nothing")
        return found

    def number(self, column: str) -> float:
        """Return a finite number.

        Raises:
            ValueError: the field is not one.
        """
        return number(self.fields[column], column, self.where)

    def number_if_any(self, column: str) -> float | None:
        """Return a finite number; None if the column or its number is missing (empty, NA, NaN, null, `.`, `-`)."""
        if self.fields.get(column, "").lower() in MISSING:
            return None
        return self.number(column)


def number(text: str, column: str, where: str) -> float:
    """Parse a finite number.

    Raises:
        ValueError: the text is not one.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{where}: expected a number as {column}, got {text!r}")
    return found


def spaced(text: str) -> str:
    """Replace underscores by spaces, and collapse and strip spaces."""
    return " ".join(text.replace("_", " ").split())


def read_text(url: str | Path) -> str:
    """Read a file in UTF-8.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not in UTF-8.
    """
    at = Folder.at(url)
    if not at.filesystem.get_file_info(at.path).is_file:
        raise FileNotFoundError(f"expected a file at {url}, found {'a folder' if at.exists() else 'none'}")
    folder, name = posixpath.split(at.path)
    content = Folder(at.filesystem, folder).read_bytes(name)
    if content.startswith(ZIP):
        raise ValueError(f"{url}: expected text, got a zip file: save an Excel sheet as `CSV UTF-8`")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(
            f"{url} line {line}: expected UTF-8, got the byte 0x{byte:02x} ({chr(byte)!r} in Latin-1): save it as "
            "`CSV UTF-8`, or convert it, as with `iconv -f latin1 -t utf-8`"
        ) from None


def read_lines(url: str | Path) -> Iterator[tuple[str, str]]:
    """Return the lines that are not blank, with their locations."""
    for count, line in enumerate(io.StringIO(read_text(url), newline=None), start=1):
        if line.strip():
            yield f"{url} line {count}", line.strip("\n")


def read_fields(url: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Return the stripped fields of each row, the first row included, with their locations.

    Raises:
        ValueError: a row has more or fewer fields than the first, a quote is not closed, or there is no row.
    """
    text = read_text(url)
    first = text.lstrip("\r\n").partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",", strict=True)
    expected, line = 0, 1
    while True:
        where = f"{url} line {line}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{where}: expected a row of CSV, got one that cannot be read ({error})") from None
        line = reader.line_num + 1
        if fields is None:
            break
        if not any(field.strip() for field in fields):
            continue
        expected = expected or len(fields)
        if len(fields) != expected:
            raise ValueError(
                f"{where}: expected {expected} fields as in the first row, got {len(fields)}: "
                "a field that holds a separator needs quotes"
            )
        yield where, [field.strip() for field in fields]
    if not expected:
        raise ValueError(f"{url} is empty")


def read_rows(url: str | Path, columns: Mapping[str, tuple[str, ...]], optional: tuple[str, ...] = ()) -> Iterator[Row]:
    """Read a table whose first row names its columns.

    Args:
        columns: accepted names of each column, in order of preference. Other columns are ignored.
        optional: columns that may be missing.

    Raises:
        ValueError: a column is missing or repeated, or there is no row.
    """
    rows = read_fields(url)
    where, titles = next(rows)
    names = [plain(title) for title in titles]
    places: dict[str, int] = {}
    for column, known in columns.items():
        found = next((name for name in known if name in names), None)
        if found is not None and names.count(found) > 1:
            raise ValueError(f"{where}: expected one column {found}, got {names.count(found)}")
        if found is not None:
            places[column] = names.index(found)
        elif column not in optional:
            raise ValueError(f"{where}: expected a column {' or '.join(known)}, got the columns {', '.join(titles)}")
    empty = True
    for where, fields in rows:
        empty = False
        yield Row(where, {column: fields[place] for column, place in places.items()})
    if empty:
        raise ValueError(f"{url} names its columns, and has no row")


def plain(title: str) -> str:
    """Normalise a column name to lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
