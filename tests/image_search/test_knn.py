"""The nearest vectors: exactly, as a loop finds them, and by an inverted file, whose recall is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as some

from groundray.image_search import knn
from groundray.image_search.knn import ExactSearch, InvertedFileSearch, Neighbours, inverted_file, recall
from groundray.storage.folder import Folder


def drawn(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 around a few centres, as an encoder's are."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((20, width))
    vectors = centres[generator.integers(0, 20, count)] + 0.7 * generator.standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@given(some.integers(1, 40), some.integers(1, 5), some.integers(1, 50), some.integers(0, 2**16))
def test_exact_search_equals_a_loop(count: int, asked: int, k: int, seed: int) -> None:
    """The pool may be smaller than k; two vectors are equal, and tie in the order of their rows."""
    vectors, queries = drawn(count, 8, seed), drawn(asked, 8, seed + 1)
    vectors[count // 2] = vectors[0]
    found = ExactSearch(vectors)(queries, k)
    assert found.rows.shape == found.scores.shape == (asked, min(k, count))
    for query, scores, rows in zip(queries, found.scores, found.rows, strict=True):
        expected = reference.ranked(vectors.tolist(), query.tolist(), k)
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-6)  # float32 sums of 8
        assert rows.tolist() == [row for row, _ in expected] or np.diff(scores).max() > -1e-6
        assert sorted(rows.tolist()) == sorted(set(rows.tolist()))
        if count // 2 in rows and count // 2:
            assert rows.tolist().index(0) < rows.tolist().index(count // 2)


@given(some.integers(1, 30), some.integers(1, 12), some.integers(1, 40), some.integers(1, 200), some.integers(0, 2**16))
def test_blocks_of_any_size_give_the_same_answer(count: int, asked: int, k: int, block: int, seed: int) -> None:
    """Scores and rows are equal to those of a loop, bit for bit: products of small integers are exact in float32, and
    many of them tie."""
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, 4)).astype(np.float32)
    queries = generator.integers(-2, 3, (asked, 4)).astype(np.float32)
    found = ExactSearch(vectors, block)(queries, k)
    for query, scores, rows in zip(queries, found.scores, found.rows, strict=True):
        products = [sum(float(x * y) for x, y in zip(vector, query, strict=True)) for vector in vectors]
        expected = sorted(range(count), key=lambda row: (-products[row], row))[:k]
        assert rows.tolist() == expected
        assert scores.tolist() == [products[row] for row in expected]


def test_scores_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 16 queries of 101 mixes each is compared block by block; a larger pool has smaller blocks."""
    sizes: list[int] = []
    computed = ExactSearch._scores

    def scores(self: ExactSearch, queries: np.ndarray) -> np.ndarray:
        sizes.append(len(self.vectors) * len(queries))
        return computed(self, queries)

    monkeypatch.setattr(ExactSearch, "_scores", scores)
    for count in (100, 700):
        ExactSearch(drawn(count, 4), block_scores=5000)(drawn(16 * 101, 4), 3)
        assert sum(sizes) == count * 16 * 101
        assert max(sizes) <= 5000
        sizes.clear()


def test_recall_is_the_fraction_found() -> None:
    exact = Neighbours(np.zeros((2, 3), np.float32), np.array([[1, 2, 3], [4, 5, 6]]))
    found = Neighbours(np.zeros((2, 3), np.float32), np.array([[3, 1, 9], [6, 5, 4]]))
    assert recall(found, exact) == pytest.approx(5 / 6)


def test_an_inverted_file_reaches_its_recall(tmp_path: Path) -> None:
    """On queries that it has not been measured with."""
    vectors, queries = np.split(drawn(4050, 16), [4000])
    found = inverted_file(vectors)
    assert found.recall >= knn.RECALL
    assert found.index.nprobe < found.index.nlist  # it is no search of everything
    assert recall(found(queries, 10), ExactSearch(vectors)(queries, 10)) > 0.9


def test_a_large_pool_builds_its_inverted_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, folder = drawn(600, 8), Folder.at(tmp_path)
    small = knn.nearest_neighbours(folder, 600, lambda: vectors, max_exact=600)
    assert isinstance(small, ExactSearch)
    assert folder.names() == []
    made = knn.nearest_neighbours(folder, 600, lambda: vectors, max_exact=599)
    assert folder.names() == [knn.FILE, knn.ABOUT]
    again = knn.nearest_neighbours(folder, 600, lambda: pytest.fail("the vectors are in the file"), max_exact=599)
    assert isinstance(made, InvertedFileSearch)
    assert isinstance(again, InvertedFileSearch)
    assert again.recall == made.recall
    np.testing.assert_array_equal(again(vectors[:5], 3).rows, made(vectors[:5], 3).rows)

    whole = {name: folder.read_bytes(name) for name in folder.names()}
    for name, content in whole.items():
        for changed in (b"", content[:-9], content.replace(content[20:24], b"\xff\x00\xff\x7f")):
            folder.write_bytes(name, changed)
            knn.nearest_neighbours(folder, 600, lambda: vectors, max_exact=599)
            assert {name: folder.read_bytes(name) for name in folder.names()} == whole  # made again

    monkeypatch.setattr(knn.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ValueError, match=r"1,000,000 .*FAISS.*groundray\[search\]"):
        knn.nearest_neighbours(folder, 600, lambda: vectors, max_exact=599)
