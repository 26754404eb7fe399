"""Randomness as a pure function of what it is for: nothing is stored, so nothing is lost when a run is killed.

Everything random in groundray (the order of samples, a sample's caption, a chunk's dropout) comes from
`mix(seed, ..., index)`. The mixing function is splitmix64's finaliser (Steele, Lea and Flood, 2014), written out
here because NumPy does not promise the same stream in its next release, and a run may outlive a release.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mix(*parts: int | Words) -> Words:
    """One well-mixed 64-bit word for each combination of `parts` (integers or uint64 arrays that broadcast)."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ _words(part)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _FIRST
            state = (state ^ (state >> np.uint64(27))) * _SECOND
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(count: int, *key: int) -> npt.NDArray[np.int64]:
    """The numbers 0 to count - 1 in the order that `key` fixes."""
    return np.argsort(mix(*key, np.arange(count, dtype=np.uint64)), kind="stable")


def pick(options: int, *key: int | Words) -> npt.NDArray[np.int64]:
    """A number from 0 to options - 1 for each combination of `key` (the bias is below options / 2**64)."""
    return (mix(*key) % np.uint64(options)).astype(np.int64)


def word_of(name: str) -> int:
    """A 64-bit number that stands for a name (a sample's id, a stage)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _words(part: int | Words) -> Words:
    if isinstance(part, int):
        return np.uint64(part & 0xFFFF_FFFF_FFFF_FFFF)  # type: ignore[return-value]
    return np.asarray(part, dtype=np.uint64)
