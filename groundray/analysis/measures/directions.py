"""Checks of the models' vectors and their directions, shared by all analyses.

Vectors of all models are checked first, and taken in double precision a model or a block of rows at a time: of 100,000
words with 768 dimensions, each model's would take 614 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

# by model; rows are the same texts for all models, whose widths may differ
Vectors = Mapping[str, Float[np.ndarray, "_text _dim"]]

NUMBERS = 2**21  # in a block of rows: 16 MB in double precision


def check(vectors: Vectors, texts: Sequence[str]) -> None:
    """Check vectors.

    Raises:
        ValueError: there is no model or no text, a model lacks a vector for each text, or a vector is not finite.
    """
    if not vectors:
        raise ValueError("expected the vectors of at least one model, got none")
    if not len(texts):
        raise ValueError("expected at least one text, got none: are all of them out of the models' vocabulary?")
    for model, rows in vectors.items():
        if rows.ndim != 2 or len(rows) != len(texts) or rows.shape[1] == 0:
            raise ValueError(f"model {model!r}: expected a vector for each of {len(texts)} texts, got {rows.shape}")
        if odd := np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist():
            raise ValueError(
                f"model {model!r}: expected finite vectors, got NaN or infinity in {len(odd)} of {len(texts)}, first "
                f"for {texts[odd[0]]!r}: did its training diverge? Take another checkpoint"
            )


def check_directions(vectors: Vectors, texts: Sequence[str]) -> None:
    """Check vectors that are to be scaled to length 1.

    Raises:
        ValueError: as `check`, or a vector is zero.
    """
    check(vectors, texts)
    for model, rows in vectors.items():
        refuse_zeros(model, np.concatenate([_lengths(rows[block]) for block in row_blocks(*rows.shape)]), texts)


def refuse_zeros(model: str, lengths: Float[np.ndarray, " text"], texts: Sequence[str]) -> None:
    """Raise ValueError with the first text whose vector has length 0, if there is one."""
    if none := np.flatnonzero(lengths == 0).tolist():
        raise ValueError(
            f"model {model!r}: expected vectors with a direction, got zero for {len(none)} of {len(texts)}, first "
            f"for {texts[none[0]]!r}: zero has no cosine; leave such texts out"
        )


def directions(
    rows: Float[np.ndarray, "_text dim"], at: Int[np.ndarray, " text"] | None = None
) -> Float[np.ndarray, "text dim"]:
    """Return vectors in double precision, scaled to length 1, so that their products are cosines.

    Args:
        at: rows to take; None for all.
    """
    units = np.empty((len(rows) if at is None else len(at), rows.shape[1]))
    for block in row_blocks(*units.shape):
        units[block] = rows[block if at is None else at[block]]
        units[block] /= _lengths(units[block])[:, None]
    return units


def places_of(words: Sequence[str], what: str = "word") -> dict[str, int]:
    """Return the row of each word.

    Raises:
        ValueError: a word stands twice.
    """
    place = {word: number for number, word in enumerate(words)}
    if len(place) < len(words):
        raise ValueError(f"expected each {what} once, got {len(words) - len(place)} again")
    return place


def row_blocks(count: int, numbers: int) -> Iterator[slice]:
    """Yield ranges of `count` rows, each of at most NUMBERS numbers, or of one row.

    Args:
        numbers: how many numbers each row takes.
    """
    size = max(1, NUMBERS // max(1, numbers))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _lengths(rows: Float[np.ndarray, "text dim"]) -> Float[np.ndarray, " text"]:
    return np.linalg.norm(rows.astype(np.float64), axis=1)
