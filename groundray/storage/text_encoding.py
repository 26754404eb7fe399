"""Text files as people save them: the encoding by its byte order mark, line ends of any system.

A mark at the start of a file says UTF-8, UTF-16 or UTF-32, as Excel and Windows Notepad write it; text without a mark
is UTF-8. No encoding is guessed, since a wrong guess is silent. NUL never stands in text: it is the sign of UTF-16
without a mark, or of a file that is no text.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# UTF-32 before UTF-16, whose little-endian mark it begins with
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK = "\ufeff"
HEAD_BYTES = 2**16
BLOCK_BYTES = 2**22
NUL = "it holds a NUL: it is UTF-16 without a byte order mark, or no text"
WIDE_LINE_ENDS = (b"\n\0", b"\0\n", b"\r\0", b"\0\r")


class TextLine(NamedTuple):
    """A line of a text file.

    Attributes:
        number: counted from 1.
        text: the line without its end; empty if it cannot be read.
        reason: why it cannot be read, in a few words such as `not UTF-8`; empty if it can.
        detail: what is wrong with it.
    """

    number: int
    text: str
    reason: str = ""
    detail: str = ""


def encoding_of(head: bytes) -> tuple[str, int]:
    """Return the encoding that the first bytes of a file say, and the length of their mark (0 without one)."""
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    return "utf-8", 0


def decode_text(content: bytes, origin: str) -> str:
    """Return the text of a file's content, without its byte order mark and with its own line ends.

    Args:
        origin: the file's name, for messages.

    Raises:
        ValueError: it is not in the encoding of its mark, or not in UTF-8; the message names the line and the repair.
    """
    encoding, skipped = encoding_of(content)
    name = _name(encoding)
    try:
        text = content[skipped:].decode(encoding)
    except UnicodeDecodeError as error:
        before, byte = content[skipped : skipped + error.start].decode(encoding, "ignore"), error.object[error.start]
        if skipped or "\0" in before:
            got = NUL if "\0" in before else f"got {error.reason} (byte 0x{byte:02x})"
            repair = "save it as UTF-8"
        else:
            got = f"got the byte 0x{byte:02x} ({chr(byte)!r} in Latin-1)"
            repair = "save it as `CSV UTF-8`, or convert it, as with `iconv -f latin1 -t utf-8`"
        raise ValueError(f"{origin} line {_count_lines(before)}: expected {name}, {got}: {repair}") from None
    if "\0" in text:
        line = _count_lines(text[: text.index("\0")])
        raise ValueError(f"{origin} line {line}: expected {name}, {NUL}: save it as UTF-8")
    return text.removeprefix(MARK)


def read_text(file: Path) -> str:
    """Return the text of a file, as `decode_text`."""
    return decode_text(file.read_bytes(), str(file))


class TextPiece(NamedTuple):
    """Some whole lines of a text file.

    Attributes:
        start, end: bytes of the file.
        before: number of lines before them.
    """

    start: int
    end: int
    before: int = 0


def split_text(file: BinaryIO, least: int) -> Iterator[TextPiece]:
    """Yield the pieces of a text file, each of at least so many bytes, except the last. Memory: a block.

    A file that is not in UTF-8 is one piece.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if encoding_of(file.read(HEAD_BYTES))[0] != "utf-8":
        yield TextPiece(0, size)
        return
    file.seek(0)
    start = end = before = lines = 0
    last = b""
    while block := file.read(BLOCK_BYTES) if end - start < least else file.readline(BLOCK_BYTES):
        lines += block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")
        lines -= last == b"\r" and block.startswith(b"\n")
        last, end = block[-1:], end + len(block)
        if end - start >= least and last == b"\n":
            yield TextPiece(start, end, before)
            start, before, lines = end, before + lines, 0
    if end > start:
        yield TextPiece(start, end, before)


class _Piece(io.RawIOBase):
    """The bytes of a file up to an end."""

    def __init__(self, file: BinaryIO, piece: TextPiece):
        self._file, self._left = file, piece.end - piece.start
        file.seek(piece.start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)


def read_text_lines(file: BinaryIO, piece: TextPiece | None = None) -> Iterator[TextLine]:
    r"""Yield the lines of a file, one at a time. They end with `\n`, `\r\n` or `\r`.

    A mark is removed from the start of every line, since files with marks are concatenated. Lines that cannot be
    decoded are yielded with the reason. Memory: one line.

    Args:
        file: opened in binary mode, at its start.
        piece: the lines to yield; all by default.
    """
    head = file.read(HEAD_BYTES)
    encoding, skipped = encoding_of(head)
    file.seek(skipped)
    number = 0
    reason, wide = f"not {_name(encoding)}", not skipped and _is_wide(head)
    if piece:
        number = piece.before
        file = io.BufferedReader(_Piece(file, piece._replace(start=max(piece.start, skipped))))
    # both handlers keep what cannot be decoded as lone surrogates, which no text has
    errors = "surrogateescape" if encoding == "utf-8" else "surrogatepass"
    lines = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=None)
    try:
        for line in lines:
            number += 1
            text = line.removesuffix("\n").removeprefix(MARK)
            if "\0" in text or (wide and text):
                yield TextLine(number, "", reason, NUL)
            elif problem := _problem(text, encoding):
                yield TextLine(number, "", reason, problem)
            else:
                yield TextLine(number, text)
    except UnicodeDecodeError as error:
        yield TextLine(number + 1, "", reason, f"{error.reason}: nothing can be read from this line on")
    finally:
        lines.detach()


def _problem(text: str, encoding: str) -> str:
    """Say what of a line could not be decoded; empty if all could."""
    try:
        text.encode()
    except UnicodeEncodeError:
        if encoding != "utf-8":
            return "it holds half of a surrogate pair"
        try:
            text.encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            return str(error)
    return ""


def _is_wide(head: bytes) -> bool:
    """Return True for UTF-16 or UTF-32 without a mark, of which some lines happen to be UTF-8.

    Text in Latin letters has a NUL in every line; Chinese has one only beside the line ends. The bytes of line ends are
    also halves of Chinese characters, therefore a fifth of them suffices.
    """
    ends = head.count(b"\n") + head.count(b"\r")
    return 5 * sum(map(head.count, WIDE_LINE_ENDS)) >= max(1, ends)


def _count_lines(text: str) -> int:
    """Return the number of the line that follows a text, counted from 1."""
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1


def _name(encoding: str) -> str:
    return encoding.removesuffix("-le").removesuffix("-be").upper()
