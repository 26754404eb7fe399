"""What analyses need of a model: the vectors of texts, and which texts it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

SHOWN = 5

Vectors = Float[np.ndarray, "text dim"]
Progress = Callable[[int, int], None]  # takes how much is done, and the total
# yields `encode` of a model for each of its batches, in order: here, or on a cluster
Encode = Callable[[Any, Sequence[Any]], Iterable[Vectors]]


@runtime_checkable
class TextModel(Protocol):
    """A model that has vectors of texts: a language model (`embedding.Embedder`), or a file of word vectors
    (`word_vectors.WordVectors`).

    Attributes:
        name: where it was loaded from.
        about: what its vectors are, for display.
        digest: hash of all that the vectors depend on, except libraries and code; equal digests give equal vectors.
        code: modules that compute the vectors.
        notes: a line for each thing that was left out, or option that is not used.
    """

    name: str

    @property
    def about(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def code(self) -> tuple[ModuleType, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def known(self, texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Return which texts have a vector."""
        ...

    def embed(self, texts: Sequence[str], progress: Progress = ..., encode: Encode = ...) -> Vectors:
        """Return the vector of each text.

        Args:
            progress: called as the work goes on.
            encode: encodes the batches of a model that computes its vectors.

        Raises:
            ValueError: there is no text, or one without a vector.
        """
        ...


Embed = Callable[[TextModel, Sequence[str]], Vectors]


def embed_here(model: TextModel, texts: Sequence[str]) -> Vectors:
    """Return the vector of each text, computed in this process."""
    return model.embed(texts)


def encode_here(model: Any, batches: Sequence[Any]) -> Iterable[Vectors]:
    """Yield the vectors of each batch, computed in this process."""
    return map(model.encode, batches)


def no_progress(done: int, of: int) -> None:
    """Show nothing."""


def refuse(name: str, texts: Sequence[str], fine: Sequence[bool], expected: str) -> None:
    """Raise ValueError with the model's name and those of the invalid texts, if there are any."""
    named = [repr(text) for text, one in zip(texts, fine, strict=True) if not one]
    if named:
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        raise ValueError(f"{name}: expected {expected}, got others for {', '.join(named[:SHOWN])}{more}")
