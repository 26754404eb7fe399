"""Checks of the models' vectors, shared by all analyses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

# by model; rows are the same texts for all models, whose widths may differ
Vectors = Mapping[str, Float[np.ndarray, "_text _dim"]]


def checked(vectors: Vectors, texts: Sequence[str]) -> dict[str, Float[np.ndarray, "_text _dim"]]:
    """Check vectors, and return them in double precision.

    Raises:
        ValueError: there is no model or no text, a model lacks a vector for each text, or a vector is not finite.
    """
    if not vectors:
        raise ValueError("expected the vectors of at least one model, got none")
    if not len(texts):
        raise ValueError("expected at least one text, got none: are all of them out of the models' vocabulary?")
    found = {}
    for model, rows in vectors.items():
        if rows.ndim != 2 or len(rows) != len(texts) or rows.shape[1] == 0:
            raise ValueError(f"model {model!r}: expected a vector for each of {len(texts)} texts, got {rows.shape}")
        if odd := np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist():
            raise ValueError(
                f"model {model!r}: expected finite vectors, got NaN or infinity in {len(odd)} of {len(texts)}, first "
                f"for {texts[odd[0]]!r}: did its training diverge? Take another checkpoint"
            )
        found[model] = rows.astype(np.float64)
    return found


def directions(vectors: Vectors, texts: Sequence[str]) -> dict[str, Float[np.ndarray, "_text _dim"]]:
    """Scale vectors to length 1, so that their products are cosines.

    Raises:
        ValueError: as `checked`, or a vector is zero.
    """
    found = {}
    for model, rows in checked(vectors, texts).items():
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if none := np.flatnonzero(lengths[:, 0] == 0).tolist():
            raise ValueError(
                f"model {model!r}: expected vectors with a direction, got zero for {len(none)} of {len(texts)}, first "
                f"for {texts[none[0]]!r}: zero has no cosine; leave such texts out"
            )
        found[model] = rows / lengths
    return found
