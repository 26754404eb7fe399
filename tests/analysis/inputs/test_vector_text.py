"""GloVe, word2vec and fastText files, in the layouts in which they are published, against a naive reading."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from groundray.analysis.inputs.found_vectors import NOT_FINITE, REPEATED, UNDECODABLE, WORDLESS, ZERO
from groundray.analysis.inputs.vector_files import FoundVectors, read_vectors

GLOVE = b"the 0.5 -2 1e-3\nzebra 1 2 3\n. . . 4 5 6\nna\xc3\xafve 7 8 9\n"
GIVEN = Path(__file__).parents[4] / "shared" / "data" / "vectors" / "glove.6B.100d.txt.gz"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


def read(file: Path, content: bytes, wanted: list[str] | None = None) -> FoundVectors:
    file.write_bytes(content)
    return read_vectors(file, wanted)


def binary(words: list[bytes], vectors: list[list[float]], end: bytes = b"\n") -> bytes:
    """word2vec's binary format; gensim writes no line ends."""
    rows = [word + b" " + struct.pack(f"<{len(row)}f", *row) + end for word, row in zip(words, vectors, strict=True)]
    return f"{len(words)} {len(vectors[0])}\n".encode() + b"".join(rows)


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        (GLOVE, "text"),
        (GLOVE.rstrip(), "text"),
        (GLOVE.replace(b"\n", b"\r\n"), "text"),
        (GLOVE.replace(b"\n", b" \n"), "text"),  # fastText and word2vec end lines with a space
        (GLOVE.replace(b"\n", b"\n\n"), "text"),
        (b"\xef\xbb\xbf" + GLOVE, "text"),
        (GLOVE.replace(b" ", b"\t").replace(b".\t.\t.", b". . ."), "text"),
        (GLOVE.replace(b" ", b"  ").replace(b".  .  .", b". . ."), "text"),
        (b"4 3\n" + GLOVE, "text with a header"),
        (b"4 3\r\n" + GLOVE.replace(b"\n", b"\r\n"), "text with a header"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_text_is_read_as_it_is_published(file: Path, content: bytes, layout: str, compressed: bool) -> None:
    found = read(file, gzip.compress(content) if compressed else content)
    assert found.words == ("the", "zebra", ". . .", "naïve")
    assert found.vectors.dtype == np.float32
    assert found.vectors.tolist() == np.array([[0.5, -2, 1e-3], [1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32).tolist()
    assert (found.rows, found.left_out) == (4, {})
    assert found.layout == (f"{layout}, gzip" if compressed else layout)


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("compressed", [False, True])
def test_word2vec_binary_is_read(file: Path, end: bytes, compressed: bool) -> None:
    # the first vector begins with the bytes of a line end and of digits, as text does
    first = list(struct.unpack("<3f", b"\n1 2" + b"3 4 " + b"5 6\n"))
    vectors = [first, [1.5, -2, 0.1], [0, 1e-30, 7]]
    content = binary([b"the", "naïve".encode(), b"ice_cream"], vectors, end)
    found = read(file, gzip.compress(content) if compressed else content)
    assert found.words == ("the", "naïve", "ice_cream")
    assert np.array_equal(found.vectors, np.array(vectors, np.float32))
    assert found.layout == ("word2vec binary, gzip" if compressed else "word2vec binary")
    some = read_vectors(file, ["ice_cream", "the", "giraffe"])
    assert some.words == ("the", "ice_cream")
    assert np.array_equal(some.vectors, np.array(vectors, np.float32)[[0, 2]])


def test_many_words_are_read_as_a_naive_loop_does(file: Path) -> None:
    """More words than are parsed or read at once."""
    draws = np.random.default_rng(0)
    words = [f"w{row}" for row in range(30_000)]
    vectors = draws.normal(size=(30_000, 12)).astype(np.float32)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, vectors.tolist(), strict=True)]
    naive = {line.split()[0]: np.array(line.split()[1:], dtype=np.float32) for line in lines}
    wanted = [*words[::7], "giraffe"]
    for content in ("\n".join(lines).encode(), binary([word.encode() for word in words], vectors.tolist())):
        found = read(file, content, wanted)
        assert found.words == tuple(words[::7])
        assert all(np.array_equal(vector, naive[word]) for word, vector in zip(found.words, found.vectors, strict=True))
        assert found.rows == 30_000


def test_words_that_cannot_be_used_are_counted_with_the_first_line(file: Path) -> None:
    lines = [
        b"a 1 2",
        b"a 3 4",
        b"caf\xe9 1 2",
        b"b nan 2",
        b" 1 2",
        b"c -inf 1",
        b"d 1e50 1",
        b"e 0 -0",
        b"a 5 6",
        b"f 8 9",
    ]
    found = read(file, b"\n".join(lines))
    assert (found.words, found.vectors.tolist(), found.rows) == (("a", "f"), [[1, 2], [8, 9]], 10)
    assert found.left_out == {
        UNDECODABLE: (1, "line 3"),
        WORDLESS: (1, "line 5"),
        REPEATED: (2, "line 2"),
        NOT_FINITE: (3, "line 4"),
        ZERO: (1, "line 8"),
    }
    asked = read_vectors(file, ["f", "b"])  # of the words that nobody asks for, only the bytes are looked at
    assert asked.left_out == {UNDECODABLE: (1, "line 3"), WORDLESS: (1, "line 5"), NOT_FINITE: (1, "line 4")}
    content = binary([b"a", b"a", b"caf\xe9", b"b", b""], [[1, 2], [3, 4], [1, 1], [np.nan, 0], [1, 1]], b"")
    assert read(file, content).left_out == {
        REPEATED: (1, "word 2"),
        UNDECODABLE: (1, "word 3"),
        NOT_FINITE: (1, "word 4"),
        WORDLESS: (1, "word 5"),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1 2 3\nb 1 2\nc 1 2 3\n", r" line 2: expected a word and 3 numbers as in most lines, got 2 after 'b 1 2'"),
        (b"a 1 2\nb 1 2 3\nc 1 2\n", r" line 2: expected a word and 2 numbers .*, got 3 after 'b 1 2 3'"),
        (b"3 2\na 1 2\n\nb 1\nc 1 2\n", r" line 4: expected a word and 2 numbers as line 1 says, got 1 after 'b 1'"),
        (b"a 1 2 3\nb 1 2 3\nc 1", r" line 3: .*, got 1 after 'c 1', where the file ends: restore the file, or remove"),
        (b"a 1 2\nb 1 x2\n", r" line 2: expected 2 numbers after 'b', got 'x2'$"),
        (b"a 1 2\nb 1 1_0\n", r" line 2: expected 2 numbers after 'b', got '1_0'$"),
        (b"3 2\na 1 2\nb 1 2\n", r": expected 3 words as line 1 says, got 2: restore the file, or correct that line"),
        (b"1 2\na 1 2\nb 1 2\n", r": expected 1 words as line 1 says, got 2"),
        (b"3 2", r": expected 3 words as line 1 says, got 0"),
        (b"0 2\na 1 2\n", r" line 1: expected numbers of words and of their numbers, got '0 2'"),
        (b"", r" is empty: expected words with vectors"),
        (b"\n \n", r" is empty"),
        (b"zebra\nhorse\n", r" line 1: expected a word and its numbers, got 'zebra'"),
        ("a 1 2\n".encode("utf-16"), r": expected words in UTF-8, got UTF-16-LE"),
        (b"a 1 2\0\n", r": expected words with vectors as text, got other bytes"),
        (b"PK\x03\x04" + bytes(50), r": expected words with vectors, got a workbook or zip file: "),
        (b"\xba\x16\x4f\x2f\x0c", r".*got a model of fastText: give its vectors \(\.vec\)"),
        (b"\x80\x04\x95", r".*got a pickle, .*: write the vectors with save_word2vec_format"),
        (binary([b"a", b"b"], [[1, 0.1], [2, 0.1]])[:-4], r": expected 2 words as line 1 says, got 1 whole ones"),
        (binary([b"a", b"b"], [[1, 0.1], [2, 0.1]])[:-12], r": expected 2 words as line 1 says, got 1 whole ones"),
        (binary([b"a", b"b"], [[1, 0.1], [2, 0.1]]) + b"c 1", r": expected 2 words of 2 numbers .*, got more"),
        (b"9 2\n" + b"a " + b"\xcd" * 20_000, r" word 2: expected a word and a space, got neither in 10,000 bytes"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_files_that_cannot_be_used_are_refused_with_the_line(
    file: Path, content: bytes, message: str, compressed: bool
) -> None:
    with pytest.raises(ValueError, match=f"vectors{message}"):
        read(file, gzip.compress(content) if compressed else content)


def test_gzip_that_is_cut_off_or_damaged_is_refused(file: Path) -> None:
    draws = np.random.default_rng(0)
    content = gzip.compress(b"".join(b"w%d %f\n" % (row, draws.normal()) for row in range(50_000)))
    assert read(file, content).rows == 50_000
    for broken in (content[:-1_000], content[:-4], content[:5_000] + bytes(20) + content[5_020:], content[:15]):
        with pytest.raises(ValueError, match=r"vectors is cut off or damaged .*: restore the file"):
            read(file, broken)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a file of word vectors at .*nowhere, found none"):
        read_vectors(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        read_vectors(tmp_path)


@pytest.mark.skipif(not GIVEN.exists(), reason=f"there are no published vectors at {GIVEN}")
def test_published_glove_is_read_as_a_naive_loop_does() -> None:
    found = read_vectors(GIVEN)
    assert (found.rows, found.vectors.shape, found.left_out) == (25_000, (25_000, 100), {})
    lines = gzip.decompress(GIVEN.read_bytes()).decode().splitlines()
    for row in range(0, 25_000, 500):
        word, *numbers = lines[row].split(" ")
        assert found.words[row] == word
        assert np.array_equal(found.vectors[row], np.array(numbers, dtype=np.float32))
