"""Values of JSON as sources write them: lists read an entry at a time, ids as numbers or text, text that is whole."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeGuard

from groundray.storage.folder import open_file
from groundray.storage.text_encoding import HEAD_BYTES, encoding_of

BLOCK = 2**20  # characters that are read at once
TOKEN = 16  # more characters than the longest token that a block's end may cut, other than a string
SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = re.compile(r"[ \t\r\n]*")


def read_json_list(file: str | Path) -> Iterator[Any]:
    """Yield the entries of a JSON list. It may have a byte order mark, as of Windows tools, and NaN, as of Python.

    Memory: an entry and a block.

    Args:
        file: path or URL.

    Raises:
        ValueError: the file is not a JSON list; the message has the file, and how much of it could be read.
    """
    with _reading(file) as reader:
        if (first := reader.next()) != "[":
            raise ValueError(f"{file}: expected a JSON list with one entry per image, got {first!r} at its start")
        yield from reader.entries()
        reader.end("the list")


def read_json_member(file: str | Path, key: str, what: str) -> Iterator[Any]:
    """Yield the entries of the list `key` of a JSON object, as `read_json_list` does those of a list.

    Args:
        what: what the file should be, for messages.

    Raises:
        ValueError: the file is not JSON, or has no such list.
    """
    with _reading(file) as reader:
        if reader.next() == "{":
            for name in reader.names():
                is_list = reader.next() == "["
                if is_list and name == key:
                    yield from reader.entries()
                    return
                for _ in reader.entries() if is_list else [reader.value()]:  # a list may be large
                    pass
        else:
            reader.value()
        reader.end("the value")
    raise ValueError(f"{file}: expected {what} with a list {key!r}, got none")


@contextlib.contextmanager
def _reading(file: str | Path) -> Iterator[_Reader]:
    """Open a file of JSON. Inside the context, whatever shows that it is none is a ValueError with the file."""
    with open_file(file) as content:
        encoding, skipped = encoding_of(content.read(HEAD_BYTES))
        content.seek(skipped)
        text = io.TextIOWrapper(content, encoding, newline="")
        reader = _Reader(text)
        try:
            yield reader
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, _BadNumber) as error:
            cause = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(
                f"{file} is not JSON after {reader.count} entries, at character {reader.position}: {cause}"
            ) from None
        finally:
            text.detach()


class _BadNumber(Exception):
    """A number is too long for Python."""


class _Reader:
    """Decodes values from a text that is read in blocks.

    Attributes:
        count: number of entries of lists that were read.
    """

    def __init__(self, text: TextIO):
        self._text, self._buffer, self._at, self._before = text, "", 0, 0
        self.count = 0
        self._decode = json.JSONDecoder().raw_decode

    @property
    def position(self) -> int:
        """Number of characters before the next one."""
        return self._before + self._at

    def next(self) -> str:
        """Return the next character that is not a space, without taking it; empty at the end."""
        if self._at < len(self._buffer) and (character := self._buffer[self._at]) not in " \t\r\n":
            return character
        while True:
            match = SPACE.match(self._buffer, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Take the next character."""
        self._at += 1

    def value(self) -> Any:
        """Take and return the next value."""
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._buffer) - TOKEN
                if not (cut and self._more()):
                    raise
            except ValueError as error:  # a number with thousands of digits
                raise _BadNumber(str(error)) from None
            else:
                is_number = isinstance(
                    value, int | float
                )  # which may continue in the next block, as 1 in `1.5` and `1e+5`
                if not is_number or end + len("e+") < len(self._buffer) or not self._more():
                    self._at = end
                    return value

    def entries(self) -> Iterator[Any]:
        """Take and yield the entries of a list, whose bracket is next."""
        self.skip()
        if self.next() == "]":
            self.skip()
            return
        while True:
            yield self.value()
            self.count += 1
            if not self._has_more("]", "the entry"):
                return
            self.next()

    def names(self) -> Iterator[str]:
        """Take and yield the names of an object, whose brace is next. The value must be taken before the next name."""
        self.skip()
        if self.next() == "}":
            self.skip()
            return
        while True:
            if self.next() != '"':
                raise self.error("expected a name in double quotes")
            name = self.value()
            if self.next() != ":":
                raise self.error("expected ':' after the name")
            self.skip()
            self.next()
            yield name
            if not self._has_more("}", f"the value of {name!r}"):
                return

    def _has_more(self, end: str, what: str) -> bool:
        """Take a comma or the end, and return whether it was a comma."""
        if (delimiter := self.next()) not in {",", end} or not delimiter:
            raise self.error(f"expected ',' or '{end}' after {what}")
        self.skip()
        return delimiter == ","

    def end(self, what: str) -> None:
        """Check that nothing follows."""
        if self.next():
            raise self.error(f"expected nothing after {what}")

    def error(self, message: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self._buffer, self._at)

    def _more(self) -> bool:
        """Read a block, or as much as is read and not taken, so that a long entry is decoded few times."""
        block = self._text.read(max(BLOCK, len(self._buffer) - self._at))
        if block:
            self._before += self._at
            self._buffer, self._at = self._buffer[self._at :] + block, 0
        return bool(block)


def as_integer(value: Any) -> int | None:
    """Return an id as a number of at most 64 bits: from a number, from text of digits, or from `12.0`, as pandas writes
    ids of a column with gaps. None for anything else."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 64 else None


def is_text(value: Any) -> TypeGuard[str]:
    """Return True for text that can be encoded. A lone surrogate such as `\\ud83d`, half of an emoji, cannot."""
    return isinstance(value, str) and (value.isascii() or not SURROGATE.search(value))
