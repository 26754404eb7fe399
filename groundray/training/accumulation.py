"""A run whose GPU does not hold the graphs of all chunks of a worker goes on with one at a time (`scaling.accumulate`).

Fewer workers have more chunks each, so an elastic run that shrinks may run out of memory. Accumulation gives the same
bits (`loop.compute_gradients`), at the cost of a second forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from groundray.config import Settings
from groundray.training.endings import GraphsDoNotFit


@contextlib.contextmanager
def offer_accumulation(settings: Settings, rank: int, world_size: int) -> Iterator[None]:
    """Raise GraphsDoNotFit where the work inside the context runs out of GPU memory, and accumulation would save some.

    Raises:
        torch.OutOfMemoryError: the worker accumulates already, or has a single chunk.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        chunks = settings.chunks // world_size
        if settings.scaling.accumulate or chunks == 1:
            raise
        reason = str(error).partition(". ")[0]
        raise GraphsDoNotFit(f"worker {rank} has no GPU memory for {chunks} chunks at once ({reason})") from error


def accumulating(settings: Settings) -> Settings:
    """Return the settings with `scaling.accumulate`."""
    return settings.model_copy(update={"scaling": settings.scaling.model_copy(update={"accumulate": True})})
