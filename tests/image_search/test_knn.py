"""The nearest vectors are those that a loop finds."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as some

from groundray.image_search import knn
from groundray.image_search.knn import ExactSearch, Neighbours, recall


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


@given(
    some.integers(1, 30),
    some.integers(1, 12),
    some.integers(1, 40),
    some.integers(1, 200),
    some.integers(1, 60),
    some.sampled_from([np.float16, np.float32]),
    some.integers(0, 2**16),
)
def test_blocks_of_any_size_give_the_same_answer(
    count: int, asked: int, k: int, scores_block: int, values_block: int, dtype: type, seed: int
) -> None:
    """Scores and rows are equal to those of a loop, bit for bit: products of small integers are exact in float16 and
    float32, and many of them tie."""
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, 4)).astype(dtype)
    queries = generator.integers(-2, 3, (asked, 4)).astype(np.float32)
    found = ExactSearch(vectors, values_block, scores_block)(queries, k)
    for query, scores, rows in zip(queries, found.scores, found.rows, strict=True):
        products = [sum(float(x * y) for x, y in zip(vector, query, strict=True)) for vector in vectors]
        expected = sorted(range(count), key=lambda row: (-products[row], row))[:k]
        assert rows.tolist() == expected
        assert scores.tolist() == [products[row] for row in expected]


def test_many_queries_are_compared_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = drawn(50, 8).astype(np.float16), drawn(11, 8, 1)
    whole = ExactSearch(vectors)(queries, 5)
    monkeypatch.setattr(knn, "BLOCK_QUERIES", 4)
    found = ExactSearch(vectors)(queries, 5)
    np.testing.assert_array_equal(found.rows, whole.rows)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-6)
    assert ExactSearch(vectors)(queries[:0], 5).rows.shape == (0, 5)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("block_scores", [1, 700, 2**22])
def test_accepted_vectors_alone_are_found(share: float, block_scores: int) -> None:
    generator = np.random.default_rng(1)
    vectors, queries = (generator.standard_normal((count, 8)).astype(np.float32) for count in (300, 3))
    accepted = generator.random(300) < share
    k = min(20, np.count_nonzero(accepted))
    found = ExactSearch(vectors, block_scores=block_scores)(queries, 20, accepted)
    expected = np.argsort(-np.where(accepted, queries @ vectors.T, -np.inf), axis=1)[:, :k]
    assert found.rows.tolist() == expected.tolist()
    assert np.isfinite(found.scores).all()


def test_float16_finds_what_float32_finds() -> None:
    """Each component is rounded by 2^-11 of itself at most, so a cosine is by 2^-11; independent roundings of 768
    components cancel to a few times 2^-11 / sqrt(3 * 768), 1e-5."""
    generator = np.random.default_rng(0)
    vectors, queries = drawn(5000, 768), drawn(100, 768, 1)
    queries[:50] = vectors[generator.integers(0, 5000, 50)]
    exact, found = ExactSearch(vectors)(queries, 10), ExactSearch(vectors.astype(np.float16))(queries, 10)
    assert recall(found, exact) > 0.99
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-4)


@pytest.mark.thorough
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 16 queries of 101 mixes each is compared block by block, in a pool of any size."""
    sizes: list[int] = []
    alive: list[weakref.ref[np.ndarray]] = []
    computed = ExactSearch._scores

    def scores(self: ExactSearch, queries: np.ndarray, first: int, stop: int, left_out: None) -> np.ndarray:
        sizes.append((stop - first) * len(queries))
        assert all(block() is None for block in alive)  # those of other blocks are gone
        found = computed(self, queries, first, stop, left_out)
        alive.append(weakref.ref(found))
        return found

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
