"""Random numbers as a pure function of their key (seed, epoch, sample ...), so that no generator state is saved.

Everything random in groundray (the order of samples, a sample's caption, a chunk's dropout) comes from
`hash64(seed, ..., index)`. The hash is splitmix64's finaliser (Steele, Lea and Flood, 2014), implemented here because
NumPy does not guarantee the same stream from one release to the next, and a run may outlive a release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 0xFFFF_FFFF_FFFF_FFFF  # 64 bits


def hash64(*parts: int | UInt64) -> UInt64:
    """Return a 64-bit hash of each combination of `parts` (integers, or uint64 arrays that broadcast)."""
    integers = [part for part in parts if isinstance(part, int)]
    if len(integers) == len(parts):
        return np.asarray(_hash_integers(integers), dtype=np.uint64)
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ _as_uint64(part)) + np.uint64(_GOLDEN)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
            state = state ^ (state >> np.uint64(31))
    return state


def shuffled(count: int, *key: int) -> npt.NDArray[np.int64]:
    """Return the numbers 0 to count - 1 in an order that depends only on `key`."""
    return np.argsort(hash64(*key, np.arange(count, dtype=np.uint64)), kind="stable")


def pick(options: int | UInt64, *key: int | UInt64) -> npt.NDArray[np.int64]:
    """Return a number from 0 to options - 1 for each combination of `key`. The bias is below options / 2**64."""
    return (hash64(*key) % _as_uint64(options)).astype(np.int64)


def hash_name(name: str) -> int:
    """Return a 64-bit hash of a name (a sample's id, a stage)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _hash_integers(parts: Sequence[int]) -> int:
    """Return `hash64` of integers alone. Python is faster than NumPy for one draw, and a scene takes a hundred."""
    state = 0
    for part in parts:
        state = ((state ^ (part & _MASK)) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _FIRST) & _MASK
        state = ((state ^ (state >> 27)) * _SECOND) & _MASK
        state ^= state >> 31
    return state


def _as_uint64(part: int | UInt64) -> UInt64:
    return np.asarray(part & _MASK if isinstance(part, int) else part, dtype=np.uint64)
