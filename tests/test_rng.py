"""Random numbers from keys: fixed across releases, well mixed, the same one by one and as arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from groundray.rng import hash64, hash_name, pick, shuffled


def test_hashes_equal_those_of_the_first_release() -> None:
    """Runs resume across releases: these numbers must never change."""
    assert int(hash64(0)) == 0xE220A8397B1DCDAF  # splitmix64's first output from state 0
    assert shuffled(6, 1, 2).tolist() == [5, 1, 4, 3, 0, 2]
    assert hash_name("photo-1") == 0xA070E5670DFC3D16


@given(st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation(count: int, key: int) -> None:
    assert sorted(shuffled(count, key).tolist()) == list(range(count))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(0, 2**64 - 1))
def test_hash_of_an_array_equals_the_hashes_of_its_elements(parts: list[int], key: int) -> None:
    together = hash64(key, np.array(parts, dtype=np.uint64))
    assert together.tolist() == [int(hash64(key, part)) for part in parts]


@given(st.lists(st.tuples(st.integers(1, 2**40), st.integers(0, 2**64 - 1)), min_size=1, max_size=20))
def test_picks_of_an_array_equal_those_one_by_one(draws: list[tuple[int, int]]) -> None:
    options, keys = (np.array(column, np.uint64) for column in zip(*draws, strict=True))
    assert pick(options, 3, keys).tolist() == [int(pick(count, 3, key)) for count, key in draws]


def test_picks_are_uniform_and_depend_on_the_order_of_the_key() -> None:
    counts = np.bincount(pick(5, 7, np.arange(50_000, dtype=np.uint64)), minlength=5)
    assert abs(counts - 10_000).max() < 400  # four standard deviations are 358
    assert int(hash64(1, 2)) != int(hash64(2, 1))


def test_changing_one_bit_of_the_key_changes_half_of_the_bits() -> None:
    index = np.arange(2_000, dtype=np.uint64)
    changed = np.bitwise_count(hash64(4, index) ^ hash64(5, index))
    assert abs(changed.mean() - 32) < 0.5
