"""Files of tables: CSV, TSV, JSON lines and Parquet, at a path or URL, read a row at a time."""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from groundray.storage.delimited_text import EXCEL, SEPARATORS, SIGNATURES, delimited_rows, unquoted
from groundray.storage.folder import Folder, open_file
from groundray.storage.text_encoding import TextLine, read_text_lines

TITLE_SEPARATORS = [*(separator for separator in SEPARATORS if separator != " "), "|"]  # a caption has spaces
HEAD_ROWS = 100  # of JSON lines, which name the columns
CELLS = 16  # that are read at once from a column of images
ROWS = 4096  # that are read at once from other columns


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        number: of its line in a text file, counted from 1; of the row in a Parquet file, counted from 0.
        values: by column; None for one that the row lacks.
        reason: why it cannot be read, in a few words; empty if it can.
        detail: what is wrong with it.
    """

    number: int
    values: dict[str, Any]
    reason: str = ""
    detail: str = ""


Fits = Callable[[Sequence[str]], bool]  # returns whether titles have the columns that are needed


@dataclass(frozen=True)
class TableFile(ABC):
    """A file of a table.

    Attributes:
        url: path or URL.
        titles: names of the columns of a text file whose first row is none of titles; None if it is.
        fits: tells the separator of a text file.
    """

    url: str
    titles: tuple[str, ...] | None = None
    fits: Fits = lambda _: True

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """The names of the columns.

        Raises:
            ValueError: the file is empty or damaged, or not of its format.
        """

    @property
    def binary(self) -> list[str]:
        """The names of columns of bytes, or of Hugging Face's struct of `bytes` and `path`."""
        return []

    def class_names(self, column: str) -> list[str]:
        """Return the names of the classes that a column numbers, as Hugging Face's `ClassLabel` has them."""
        return []

    @abstractmethod
    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        """Yield the rows with the values of some columns. Memory: some rows."""


def open_table(url: str, titles: Sequence[str] | None, fits: Fits) -> TableFile:
    """Return the file of a table, whose format the end of its name says.

    Raises:
        ValueError: the name has another end.
    """
    for kind in (DelimitedFile, JsonLinesFile, ParquetFile):
        if url.lower().endswith(kind.ENDS):
            return kind(url, tuple(titles) if titles else None, fits)
    raise ValueError(f"{url}: expected a file whose name ends with .csv, .tsv, .jsonl or .parquet")


class DelimitedFile(TableFile):
    ENDS = (".csv", ".tsv", ".tab", ".txt")

    @property
    def columns(self) -> list[str]:
        return self._head[1]

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        separator, names, first = self._head
        at = {column: names.index(column) for column in columns}
        unreadable: list[TextLine] = []
        with text_lines(self.url) as lines:
            texts = _readable(lines, unreadable)
            if first:
                texts = (line for line in texts if line[0] > first)
            for row in delimited_rows(texts, separator, len(names)):
                for line in unreadable:
                    yield TableRow(line.number, {}, line.reason, line.detail)
                unreadable.clear()
                values = {column: row.fields[place] or None for column, place in at.items()} if row.fields else {}
                yield TableRow(row.line, values, "malformed" if row.problem else "", row.problem)
        for line in unreadable:
            yield TableRow(line.number, {}, line.reason, line.detail)

    @cached_property
    def _head(self) -> tuple[str, list[str], int]:
        """The separator, the names of the columns, and the number of the line that has them, or 0 without one."""
        unreadable: list[TextLine] = []
        with text_lines(self.url) as lines:
            head = list(islice(_readable(lines, unreadable), 2))
        if not head:
            got = unreadable[0].detail if unreadable else "it is empty"
            raise ValueError(f"{self.url}: expected lines of text, {got}")
        excel = EXCEL.fullmatch(head[0][1].strip())
        number, line = head[1] if excel and len(head) > 1 else head[0]
        separators = [excel["separator"]] if excel else TITLE_SEPARATORS
        if self.titles:
            count = len(self.titles)
            separator = next((each for each in separators if line.count(each) + 1 >= count), separators[0])
            return separator, list(self.titles), number - 1
        titles = {each: [unquoted(title) for title in line.split(each)] for each in separators}
        widest = max(titles, key=lambda each: len(titles[each]))
        separator = next((each for each, names in titles.items() if self.fits(names)), widest)
        return separator, titles[separator], number


class JsonLinesFile(TableFile):
    ENDS = (".jsonl", ".ndjson")

    @property
    def columns(self) -> list[str]:
        return self._columns

    @cached_property
    def _columns(self) -> list[str]:
        head = list(islice((row for row in self._objects() if not row.reason), HEAD_ROWS))
        if not head:
            problem = next((row.detail for row in self._objects()), "it is empty")
            raise ValueError(f"{self.url}: expected a JSON object per line, {problem}")
        return list(dict.fromkeys(chain.from_iterable(row.values for row in head)))

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        for row in self._objects():
            yield row if row.reason else row._replace(values={column: row.values.get(column) for column in columns})

    def _objects(self) -> Iterator[TableRow]:
        with text_lines(self.url) as lines:
            for line in lines:
                if line.reason:
                    yield TableRow(line.number, {}, line.reason, line.detail)
                elif line.text.strip():
                    yield _object(line)


def _object(line: TextLine) -> TableRow:
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        return TableRow(line.number, {}, "malformed", f"it is not JSON: {error}")
    if not isinstance(value, dict):
        return TableRow(line.number, {}, "malformed", f"expected a JSON object, got {line.text.strip()[:100]}")
    return TableRow(line.number, value)


class ParquetFile(TableFile):
    ENDS = (".parquet", ".pq")

    @property
    def columns(self) -> list[str]:
        return self._schema.names

    @property
    def binary(self) -> list[str]:
        return [field.name for field in self._schema if _is_binary(field.type)]

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        with _parquet(self.url) as file:
            number = 0
            for batch in file.iter_batches(ROWS, columns=list(columns)):
                for values in batch.to_pylist():
                    yield TableRow(number, values)
                    number += 1

    def class_names(self, column: str) -> list[str]:
        try:
            described = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
            names = described["info"]["features"][column]["names"]
        except (ValueError, KeyError, TypeError):
            return []
        return [str(name) for name in names] if isinstance(names, list) else []

    def cells(self, column: str, numbers: Iterable[int]) -> Iterator[Any]:
        """Yield the values of a column at increasing row numbers. Memory: CELLS of them."""
        with _parquet(self.url) as file:
            metadata = file.metadata
            wanted = iter(numbers)
            number, start = next(wanted, None), 0
            for group in range(metadata.num_row_groups):
                end = start + metadata.row_group(group).num_rows
                if number is not None and number < end:
                    at = start
                    for batch in file.iter_batches(CELLS, row_groups=[group], columns=[column]):
                        while number is not None and number < at + len(batch):
                            yield batch.column(0)[number - at].as_py()
                            number = next(wanted, None)
                        at += len(batch)
                start = end

    @cached_property
    def _schema(self) -> pa.Schema:
        with _parquet(self.url) as file:
            if not file.metadata.num_rows:
                raise ValueError(f"{self.url} has no row")
            return file.schema_arrow


ENDS = (*DelimitedFile.ENDS, *JsonLinesFile.ENDS, *ParquetFile.ENDS)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


@contextlib.contextmanager
def _parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Inside the context, whatever shows that it is damaged is a ValueError with its name."""
    above, _, name = url.rpartition("/")
    folder = Folder.at(above or ("/" if url.startswith("/") else "."))
    try:
        with (
            folder.readable_errors(),
            folder.filesystem.open_input_file(folder.locate(name)) as content,
            # pages are read as they are needed, since a row group of images may be large
            pq.ParquetFile(content, pre_buffer=False, buffer_size=2**20) as file,
        ):
            yield file
    except pa.ArrowException as error:
        raise ValueError(f"{url} is cut off, damaged, or not Parquet ({error}): restore the file") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {url}") from None
    except OSError as error:
        if url.startswith(("s3:", "gs:")):
            raise
        raise ValueError(f"{url} is cut off, damaged, or not Parquet ({error}): restore the file") from None


@contextlib.contextmanager
def text_lines(url: str) -> Iterator[Iterator[TextLine]]:
    """Open a text file as its lines.

    Raises:
        ValueError: it begins as no text.
    """
    with open_file(url) as file:
        start = file.read(8)
        for signature, what in SIGNATURES.items():
            if start.startswith(signature):
                raise ValueError(f"{url}: expected text, got {what}")
        file.seek(0)
        with contextlib.closing(cast(Generator[TextLine], read_text_lines(file))) as lines:
            yield lines


def _readable(lines: Iterable[TextLine], unreadable: list[TextLine]) -> Iterator[tuple[int, str]]:
    """Yield numbers and texts of lines that are not blank. Lines that cannot be decoded are added to `unreadable`."""
    for line in lines:
        if line.reason:
            unreadable.append(line)
        elif line.text.strip():
            yield line.number, line.text
