"""Words with their vectors, written and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from groundray.analysis.inputs.found_vectors import NOT_FINITE, REPEATED, VECTORLESS, WORDLESS, ZERO
from groundray.analysis.inputs.vector_files import read_vectors, write_vectors

WORDS = ("zebra", "ice cream", "Paris", "naïve")
VECTORS = np.array([[1, 2], [-3, 0.25], [0, 1e-30], [7, -0.1]], dtype=np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "made" / "vectors.parquet", WORDS, VECTORS, {"about": "a word by its images", "images": 3})
    return tmp_path / "made" / "vectors.parquet"


def test_parquet_is_read_as_it_was_written(file: Path) -> None:
    found = read_vectors(file)
    assert found.words == WORDS
    assert found.vectors.dtype == np.float32
    assert np.array_equal(found.vectors, VECTORS)
    assert (found.rows, found.layout, found.left_out) == (4, "Parquet", {})
    assert found.metadata == {"about": "a word by its images", "images": 3}
    assert np.array_equal(read_vectors(f"file://{file}").vectors, VECTORS)
    again = file.parent / "again.parquet"
    write_vectors(again, WORDS, VECTORS, {"about": "a word by its images", "images": 3})
    assert again.read_bytes() == file.read_bytes()


def test_only_words_that_are_asked_for_are_kept(file: Path) -> None:
    found = read_vectors(file, {"Paris", "zebra", "giraffe", ""})
    assert found.words == ("zebra", "Paris")
    assert np.array_equal(found.vectors, VECTORS[[0, 2]])
    assert found.rows == 4
    nothing = read_vectors(file, ["giraffe"])
    assert nothing.words == ()
    assert nothing.vectors.shape == (0, 2)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)]
)
@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_other_programs_is_read(tmp_path: Path, kind: pa.DataType, text: pa.DataType) -> None:
    vectors = [[0.5, 2], [3, -4]]
    columns = {"vector": pa.array(np.array(vectors, np.float16).tolist(), kind), "n": [1, 2]}
    pq.write_table(pa.table({"word": pa.array(["a", "b"]).cast(text), **columns}), tmp_path / "v.parquet")
    found = read_vectors(tmp_path / "v.parquet")
    assert found.words == ("a", "b")
    assert found.vectors.tolist() == vectors
    assert found.metadata == {}


def test_rows_that_cannot_be_used_are_counted_with_the_first_place(tmp_path: Path) -> None:
    rows = [("a", [1, 2]), ("a", [3, 4]), (None, [1, 1]), ("b", None), ("c", [1, np.nan]), ("", [1, 1])]
    rows += [("d", [np.inf, 1]), ("a", [5, 6]), ("e", [8, 9]), ("f", [None, 1]), ("g", [0, 0])]
    words, vectors = zip(*rows, strict=True)
    pq.write_table(
        pa.table({"word": pa.array(words), "vector": pa.array(vectors, pa.list_(pa.float32()))}),
        tmp_path / "v.parquet",
    )
    found = read_vectors(tmp_path / "v.parquet")
    assert (found.words, found.vectors.tolist(), found.rows) == (("a", "e"), [[1, 2], [8, 9]], 11)
    assert found.left_out == {
        REPEATED: (2, "row 2"),
        WORDLESS: (2, "row 3"),
        VECTORLESS: (1, "row 4"),
        NOT_FINITE: (3, "row 5"),
        ZERO: (1, "row 11"),
    }
    assert read_vectors(tmp_path / "v.parquet", ["e"]).left_out == {WORDLESS: (2, "row 3")}


def test_parquet_that_cannot_be_used_is_refused_with_its_row(tmp_path: Path, file: Path) -> None:
    def write(**columns: object) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "other.parquet")
        return tmp_path / "other.parquet"

    uneven = write(word=["a", "b", "c"], vector=[[1.0, 2.0], [1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match=r"other\.parquet row 3: expected a vector of 2 numbers .*, got 1$"):
        read_vectors(uneven)
    for columns in ({"token": ["a"], "vector": [[1.0]]}, {"word": ["a"], "vector": [1.0]}, {"word": [1], "vector": []}):
        columns = {name: column or [[1.0]] for name, column in columns.items()}
        with pytest.raises(ValueError, match=r"columns word \(string\) and vector \(list of floats\), got "):
            read_vectors(write(**columns))
    with pytest.raises(ValueError, match="got no row"):
        read_vectors(write(word=pa.array([], pa.string()), vector=pa.array([], pa.list_(pa.float32(), 2))))
    for metadata in ("{", "3"):
        table = pa.table({"word": ["a"], "vector": [[1.0]]}, metadata={"groundray": metadata})
        pq.write_table(table, tmp_path / "other.parquet")
        with pytest.raises(
            ValueError, match=r"other\.parquet: expected a JSON object as metadata groundray, got another"
        ):
            read_vectors(tmp_path / "other.parquet")
    content = file.read_bytes()
    for place in (4, len(content) // 4):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"vectors\.parquet is cut off or damaged"):
            read_vectors(file)
    file.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"vectors\.parquet is cut off or damaged"):
        read_vectors(file)
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "none.parquet")


def test_vectors_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "v.parquet"
    with pytest.raises(ValueError, match=r"a vector for each of 1 words, got an array of shape \(4, 2\)"):
        write_vectors(place, ["a"], VECTORS, {})
    with pytest.raises(ValueError, match="distinct words, got 1 repeated"):
        write_vectors(place, ["a", "b", "c", "a"], VECTORS, {})
    with pytest.raises(ValueError, match="an empty word"):
        write_vectors(place, ["a", "b", "c", ""], VECTORS, {})
    with pytest.raises(ValueError, match="finite vectors, got others for 'Paris'"):
        write_vectors(place, WORDS, np.where(VECTORS == 1e-30, np.nan, VECTORS).astype(np.float32), {})
    assert not place.exists()
