"""A fraction of a source that is held out for validation, by the ids of its samples."""

from __future__ import annotations

import argparse
from functools import lru_cache
from typing import Any, Protocol

from groundray.rng import hash64, hash_name


class _Arguments(Protocol):
    """A parser, or one of its groups."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any: ...


def add_val_fraction(parser: _Arguments) -> None:
    """Add `--val-fraction`."""
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="FRACTION",
        help="fraction of the images to hold out, between 0 and 1: writes train/ and val/ (default: no split)",
    )


def val_fraction_of(options: argparse.Namespace) -> float | None:
    """Return the fraction to hold out; None for no split.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    fraction: float | None = options.val_fraction
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"--val-fraction: expected a fraction between 0 and 1, got {fraction:g}")
    return fraction


def part_of(fraction: float | None) -> str:
    """Return the end of a message about a split that is empty; of no split, nothing."""
    return f" at --val-fraction {fraction:g}" if fraction else ""


@lru_cache(maxsize=8)  # it is asked for each member of a sample, and a hash takes ten times as long
def is_held_out(id: str, fraction: float) -> bool:
    """Return True for about a fraction of all ids; the id alone decides."""
    return int(hash64(hash_name(id))) / 2**64 < fraction
