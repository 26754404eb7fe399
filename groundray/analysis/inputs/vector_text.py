"""Words with their vectors in the formats of GloVe, word2vec and fastText, plain or in gzip.

A line of text is a word and its numbers, between spaces or tabs. word2vec and fastText begin with a line of two
integers, the number of words and that of the numbers of each; GloVe has none. A word may hold spaces (`. . .` in GloVe
840B): it is what stands before the numbers. In word2vec's binary format, the words follow that first line: each is its
text, a space, and little-endian float32.

A line of another width is an error, with its number: the file is cut off, or not what its first line says. Words that
are not UTF-8, or are wanted and occur before or lack a finite vector, are counted.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from zlib_ng import gzip_ng, zlib_ng  # twice as fast as gzip

from groundray.analysis.inputs.found_vectors import UNDECODABLE, WORDLESS, FoundVectors, Gathering, Vectors
from groundray.storage.delimited_text import SIGNATURES
from groundray.storage.text_encoding import encoding_of

GZIP = b"\x1f\x8b"
HEAD_BYTES = 2**16  # by which a format is told
BLOCK_BYTES = 2**20
BLOCK_ROWS = 1_000  # whose numbers are parsed at once
MAX_WORD = 10_000  # bytes; a word of word2vec's binary format that is longer is none
HEADER = re.compile(rb"\s*(\d+)\s+(\d+)\s*")
# what a file of another kind begins with, and where its vectors are
OTHERS = {
    **{signature: what for signature, what in SIGNATURES.items() if signature != GZIP},
    b"\xba\x16\x4f\x2f": "a model of fastText: give its vectors (.vec)",
    b"\x93NUMPY": "an array of numpy without words: give a file with both",
    b"\x80": "a pickle, such as one of gensim: write the vectors with save_word2vec_format",
    b"BZh": "a bzip2 file: unpack it",
    b"\xfd7zXZ": "an xz file: unpack it",
}
RESTORE = "restore the file"
DAMAGED: Any = (EOFError, gzip.BadGzipFile, zlib_ng.error)


class Layout(NamedTuple):
    """The format of a file.

    Attributes:
        width: numbers of a word.
        rows: number of words by the first line; None without such a line.
        start: bytes before the first word: of a byte order mark and the first line.
    """

    width: int
    rows: int | None
    start: int
    binary: bool
    compressed: bool

    def __str__(self) -> str:
        kind = "word2vec binary" if self.binary else "text" if self.rows is None else "text with a header"
        return f"{kind}, gzip" if self.compressed else kind


def read_vector_text(url: str, source: BinaryIO, asked: frozenset[str] | None) -> FoundVectors:
    """Read vectors in any of these formats. Only those of the words asked for are kept in memory.

    Args:
        url: name of the file for messages.
        source: the file, at its start.
        asked: None for all words.

    Raises:
        ValueError: the file is empty, cut off or of another format, or a line has another width or no numbers.
    """
    compressed = source.read(len(GZIP)) == GZIP
    source.seek(0)
    file = io.BufferedReader(gzip_ng.GzipNGFile(fileobj=source), BLOCK_BYTES) if compressed else source
    with _whole(url):
        layout = _layout(url, file.read(HEAD_BYTES), compressed)
        file.seek(layout.start)
        return (_read_binary if layout.binary else _read_lines)(url, file, layout, asked)


@contextlib.contextmanager
def _whole(url: str) -> Iterator[None]:
    """Raise ValueError where a gzip file is cut off or damaged."""
    try:
        yield
    except DAMAGED as error:
        raise ValueError(f"{url} is cut off or damaged ({error}): {RESTORE}") from None


def _layout(url: str, head: bytes, compressed: bool) -> Layout:
    """Tell the format of a file by its first bytes.

    Raises:
        ValueError: it is empty, or of another format.
    """
    for signature, what in OTHERS.items():
        if head.startswith(signature):
            raise ValueError(f"{url}: expected words with vectors, got {what}")
    encoding, mark = encoding_of(head)
    if encoding != "utf-8":
        raise ValueError(f"{url}: expected words in UTF-8, got {encoding.upper()}: save the file as UTF-8")
    if not head[mark:].strip():
        raise ValueError(f"{url} is empty: expected words with vectors")
    first, line_end, rest = head[mark:].partition(b"\n")
    if header := HEADER.fullmatch(first):
        rows, width = int(header[1]), int(header[2])
        if not rows or not width:
            raise ValueError(f"{url} line 1: expected numbers of words and of their numbers, got {_shown(first)}")
        fields = rest.partition(b"\n")[0].split()[1:]
        binary = bool(rest.strip()) and (not fields or 2 * sum(map(_is_number, fields)) < len(fields))
        return Layout(width, rows, mark + len(first + line_end), binary, compressed)
    if b"\0" in head:
        raise ValueError(f"{url}: expected words with vectors as text, got other bytes: {RESTORE}")
    lines = [line for line in head[mark:].split(b"\n") if line.strip()]
    whole = lines[:-1] if len(head) == HEAD_BYTES and len(lines) > 1 else lines
    # a word may hold spaces, and a line may be damaged: most are not
    width = Counter(len(line.split()) - 1 for line in whole).most_common(1)[0][0]
    if not width:
        raise ValueError(f"{url} line 1: expected a word and its numbers, got {_shown(first)}")
    return Layout(width, None, mark, False, compressed)


def _read_lines(url: str, file: BinaryIO, layout: Layout, asked: frozenset[str] | None) -> FoundVectors:
    wanted = None if asked is None else frozenset(word.encode() for word in asked)
    gathering, rows = Gathering(), 0
    block: list[tuple[str, bytes, int]] = []

    def flush() -> None:
        if block:
            words, _, places = zip(*block, strict=True)
            gathering.add(list(words), _numbers(url, block, layout.width), [f"line {line}" for line in places])
            block.clear()

    first = 1 if layout.rows is None else 2
    for number, line in enumerate(file, start=first):
        content = line.rstrip()
        if not content:
            continue
        rows += 1
        name = content.partition(b" ")[0]
        if content.count(b" ") != layout.width:
            name = _word(url, content, number, layout, ended=line.endswith(b"\n"))
        if not name:
            gathering.leave_out(WORDLESS, f"line {number}")
            continue
        word = _decoded(name)
        if word is None:
            gathering.leave_out(UNDECODABLE, f"line {number}")
        elif wanted is None or name in wanted:
            block.append((word, content[len(name) :], number))
        if len(block) == BLOCK_ROWS:
            flush()
    flush()
    _check_rows(url, rows, layout)
    return gathering.found(layout.width, rows, str(layout))


def _word(url: str, content: bytes, line: int, layout: Layout, ended: bool) -> bytes:
    """Return the word of a line that has not one space before each number: it may hold spaces, or tabs may separate.

    Raises:
        ValueError: the line has too few or too many numbers.
    """
    if content[:1].isspace() and len(content.split()) == layout.width:
        return b""
    parts = content.rsplit(None, layout.width)
    word = parts[0]
    if len(parts) <= layout.width or (word.split()[1:] and _is_number(word.split()[-1])):
        found = sum(map(_is_number, content.split()[1:]))
        says = " as line 1 says" if layout.rows is not None else " as in most lines"
        cut = "" if ended else ", where the file ends"
        raise ValueError(
            f"{url} line {line}: expected a word and {layout.width} numbers{says}, got {found} after "
            f"{_shown(content)}{cut}: {RESTORE}, or remove the line"
        )
    return word


def _numbers(url: str, block: Sequence[tuple[str, bytes, int]], width: int) -> Vectors:
    """Parse the numbers of lines.

    Raises:
        ValueError: a line has something else; the message names it.
    """
    try:
        return _parsed([numbers for _, numbers, _ in block])
    except ValueError:
        for word, numbers, line in block:
            try:
                _parsed([numbers])
            except ValueError:
                other = next(field for field in numbers.split() if not _is_number(field))
                raise ValueError(
                    f"{url} line {line}: expected {width} numbers after {word!r}, got {_shown(other)}"
                ) from None
        raise


def _parsed(lines: Sequence[bytes]) -> Vectors:
    # 100 numbers of 25,000 words: .43 s, against .71 s with `float`
    return np.loadtxt(lines, dtype=np.float32, comments=None, ndmin=2)


def _read_binary(url: str, file: BinaryIO, layout: Layout, asked: frozenset[str] | None) -> FoundVectors:
    wanted = None if asked is None else frozenset(word.encode() for word in asked)
    gathering, size = Gathering(), 4 * layout.width
    buffer, at = b"", 0

    def fill(least: int) -> bool:
        """Read on, until `least` bytes are in the buffer; return whether they are."""
        nonlocal buffer, at
        while len(buffer) - at < least and (more := file.read(BLOCK_BYTES)):
            buffer, at = buffer[at:] + more, 0
        return len(buffer) - at >= least

    rows = layout.rows or 0
    for row in range(1, rows + 1):
        fill(MAX_WORD + size)
        space = buffer.find(b" ", at, at + MAX_WORD)
        if space < 0 and len(buffer) - at >= MAX_WORD:
            raise ValueError(
                f"{url} word {row}: expected a word and a space, got neither in {MAX_WORD:,} bytes: the vectors are "
                f"not of {layout.width} numbers as line 1 says, or damaged: {RESTORE}"
            )
        if space < 0 or len(buffer) - space - 1 < size:
            raise ValueError(f"{url}: expected {rows:,} words as line 1 says, got {row - 1:,} whole ones: {RESTORE}")
        name = buffer[at:space].lstrip(b"\n")  # word2vec ends each vector with a line end, gensim does not
        vector = buffer[space + 1 : space + 1 + size]
        at = space + 1 + size
        word = _decoded(name)
        if not name:
            gathering.leave_out(WORDLESS, f"word {row}")
        elif word is None:
            gathering.leave_out(UNDECODABLE, f"word {row}")
        elif wanted is None or name in wanted:
            gathering.add([word], np.frombuffer(vector, dtype="<f4").astype(np.float32)[None], [f"word {row}"])
    fill(BLOCK_BYTES)
    if buffer[at:].strip():
        raise ValueError(
            f"{url}: expected {rows:,} words of {layout.width} numbers as line 1 says, got more: {RESTORE}"
        )
    return gathering.found(layout.width, rows, str(layout))


def _check_rows(url: str, rows: int, layout: Layout) -> None:
    """Compare the number of words with the one that the first line says.

    Raises:
        ValueError: they differ.
    """
    if layout.rows is not None and rows != layout.rows:
        raise ValueError(
            f"{url}: expected {layout.rows:,} words as line 1 says, got {rows:,}: {RESTORE}, or correct that line"
        )


def _decoded(word: bytes) -> str | None:
    try:
        return word.decode()
    except UnicodeDecodeError:
        return None


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return b"_" not in field  # float reads 1_000 as 1000


def _shown(content: bytes) -> str:
    text = content.decode(errors="backslashreplace").strip()
    return repr(f"{text[:40]}..." if len(text) > 40 else text)
