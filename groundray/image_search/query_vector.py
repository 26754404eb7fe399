"""The vector of a query, of those of its parts: Q = (1 - alpha) Q_image + alpha Q_text, less what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

WITHOUT = 0.5  # weight of the text to leave out
Vector = Float32[np.ndarray, " dim"]


class PartVectors(NamedTuple):
    """The vectors of a query's parts, of length 1; None for a part that it has not."""

    image: Vector | None
    text: Vector | None
    without: Vector | None


def mean_vector(texts: Sequence[Vector]) -> Vector | None:
    """Return the mean of some texts' vectors, scaled to length 1; of one text its own vector, of none None."""
    if len(texts) < 2:
        return texts[0] if texts else None
    return unit(np.stack(texts).mean(axis=0))


def mix_vectors(image: Vector | None, text: Vector | None, alpha: float) -> Vector:
    """Return Q = (1 - alpha) Q_image + alpha Q_text, scaled to length 1.

    At alpha 0 it is exactly the image's vector, at alpha 1 the text's. If one of them is None, it is the other.
    """
    if image is None or text is None:
        vector = text if image is None else image
        assert vector is not None
        return unit(vector)
    return unit(np.float32(1 - alpha) * image + np.float32(alpha) * text)


def leave_out(query: Vector, without: Vector | None) -> Vector:
    """Return Q - WITHOUT Q_without, scaled to length 1; Q itself if there is nothing to leave out."""
    return query if without is None else unit(query - np.float32(WITHOUT) * without)


def finite(values: Float32[np.ndarray, ...], what: str) -> Float32[np.ndarray, ...]:
    """Return what a model gives for pictures or texts. A single NaN among the vectors of a pool would fail each search.

    Raises:
        ValueError: not all values are finite.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"the model gives {what} that are not finite: its weights are damaged, use another checkpoint")
    return values


def unit(vector: Vector) -> Vector:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
