"""Text files in any encoding that a mark names, with any line ends; what is no text is refused by line."""

from __future__ import annotations

import codecs
import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundray.storage import text_encoding
from groundray.storage.text_encoding import MARKS, TextLine, decode_text, read_text, read_text_lines, split_text

LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), max_size=12)


def read(content: bytes) -> list[TextLine]:
    return list(read_text_lines(io.BytesIO(content)))


@given(
    st.lists(LINE, min_size=1, max_size=6), st.sampled_from(MARKS), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans()
)
def test_marked_text_reads_back_equal(lines: list[str], mark: tuple[bytes, str], end: str, last: bool) -> None:
    text = end.join(lines) + end * last
    content = mark[0] + text.encode(mark[1])
    assert decode_text(content, "a.txt") == text
    found = read(content)
    assert [line.text for line in found] == (lines if last or lines[-1] else lines[:-1])
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    assert not any(line.reason for line in found)


@given(st.lists(LINE, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_text_without_a_mark_is_utf_8(lines: list[str], end: str) -> None:
    content = "".join(line + end for line in lines).encode()
    assert [line.text for line in read(content)] == lines
    assert decode_text(content, "a.txt").split(end)[:-1] == lines


def test_marks_between_concatenated_files_are_no_text() -> None:
    one = codecs.BOM_UTF8 + b"the dog\n"
    assert [line.text for line in read(one + one)] == ["the dog", "the dog"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["the dog\nthe cat\n", "\u4e0a\u4e2d\u9ad8\n\u4e0a\u4e2d\n\u4e00\u4e01\n"])
def test_every_line_of_utf_16_without_a_mark_is_refused(encoding: str, text: str) -> None:
    found = read(text.encode(encoding))
    assert found
    assert {line.reason for line in found if line.reason} == {"not UTF-8"}
    assert not any(line.text for line in found)
    with pytest.raises(ValueError, match=r"a.txt line [123]: expected UTF-8, (it holds|got)"):
        decode_text(text.encode(encoding), "a.txt")


def test_one_bad_line_spoils_only_itself() -> None:
    found = read(b"one\ncaf\xe9\nno\0text\n\nlast")
    assert [(line.number, line.text, line.reason) for line in found] == [
        (1, "one", ""), (2, "", "not UTF-8"), (3, "", "not UTF-8"), (4, "", ""), (5, "last", ""),
    ]  # fmt: skip
    assert "0xe9" in found[1].detail
    assert "NUL" in found[2].detail
    dirty = b"a line\n" * 10 + b"\0\n" + b"a line\n" * 10
    assert [line.number for line in read(dirty) if line.reason] == [11]
    half = codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le") + b"\x00\xd8\n\x00" + "two".encode("utf-16-le")
    assert [(line.text, line.reason) for line in read(half)] == [("one", ""), ("", "not UTF-16"), ("two", "")]


def test_a_cut_file_names_its_last_line() -> None:
    content = codecs.BOM_UTF16_LE + "one\ntwo\n".encode("utf-16-le") + b"t"
    found = read(content)
    assert found[-1].reason == "not UTF-16"
    assert [line.text for line in found[:2]] == ["one", "two"]
    with pytest.raises(ValueError, match=r"a.txt line 3: expected UTF-16, got truncated data"):
        decode_text(content, "a.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\r\ncaf\xe9\r\n", r"line 2: expected UTF-8, got the byte 0xe9 \('é' in Latin-1\): .*`iconv"),
        (b"one\rtwo\rcaf\xe9", r"line 3: expected UTF-8"),
        (b"one\ntwo\0\n", r"line 2: expected UTF-8, it holds a NUL"),
        (codecs.BOM_UTF16_BE + b"\0a\0\n\0\0", r"line 2: expected UTF-16, it holds a NUL"),
    ],
)
def test_error_names_the_line_and_the_repair(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_text(file)
    assert str(error.value).startswith(f"{file} line ")


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("block", [1, 5, 2**20])
def test_pieces_have_the_lines_of_the_whole(mark: bytes, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoding, "BLOCK_BYTES", block)
    chance = random.Random(block)
    for _ in range(60):
        ends = chance.choice((["\n"], ["\r\n"], ["\n", "\r\n", "\r", "\n\n"]))
        lines = "".join(f"{'é' * chance.randrange(4)}line{chance.choice(ends)}" for _ in range(chance.randrange(20)))
        file = io.BytesIO(mark + lines.encode() + chance.choice((b"", b"end", b"\xff")))
        whole = list(read_text_lines(file))
        for least in (1, 8, 40, 10**6):
            file.seek(0)
            pieces = list(split_text(file, least))
            assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
            assert all(piece.end - piece.start >= least for piece in pieces[:-1])
            read = []
            for piece in pieces:
                file.seek(0)
                read += list(read_text_lines(file, piece))
            assert read == whole
    wide = io.BytesIO(codecs.BOM_UTF16_LE + "a\nb\n".encode("utf-16-le"))
    assert list(split_text(wide, 1)) == [(0, 10, 0)]
