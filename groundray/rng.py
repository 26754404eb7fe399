"""Randomness as a pure function of what it is for: nothing is stored, so nothing is lost when a run is killed.

Everything random in groundray (the order of samples, a sample's caption, a chunk's dropout) comes from
`hash64(seed, ..., index)`. The mixing function is splitmix64's finaliser (Steele, Lea and Flood, 2014), written out
here because NumPy does not promise the same stream in its next release, and a run may outlive a release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_LOW = 0xFFFF_FFFF_FFFF_FFFF  # the 64 bits that a word has


def hash64(*parts: int | Words) -> Words:
    """One well-mixed 64-bit word for each combination of `parts` (integers or uint64 arrays that broadcast)."""
    integers = [part for part in parts if isinstance(part, int)]
    if len(integers) == len(parts):
        return np.asarray(_mix_integers(integers), dtype=np.uint64)
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ _words(part)) + np.uint64(_GOLDEN)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(count: int, *key: int) -> npt.NDArray[np.int64]:
    """The numbers 0 to count - 1 in the order that `key` fixes."""
    return np.argsort(hash64(*key, np.arange(count, dtype=np.uint64)), kind="stable")


def pick(options: int, *key: int | Words) -> npt.NDArray[np.int64]:
    """A number from 0 to options - 1 for each combination of `key` (the bias is below options / 2**64)."""
    return (hash64(*key) % np.uint64(options)).astype(np.int64)


def hash_name(name: str) -> int:
    """A 64-bit number that stands for a name (a sample's id, a stage)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mix_integers(parts: Sequence[int]) -> int:
    """The same word of integers alone: a scene takes a hundred draws, and Python is quicker at one than NumPy."""
    state = 0
    for part in parts:
        state = ((state ^ (part & _LOW)) + _GOLDEN) & _LOW
        state = ((state ^ (state >> 30)) * _FIRST) & _LOW
        state = ((state ^ (state >> 27)) * _SECOND) & _LOW
        state ^= state >> 31
    return state


def _words(part: int | Words) -> Words:
    return np.asarray(part & _LOW if isinstance(part, int) else part, dtype=np.uint64)
