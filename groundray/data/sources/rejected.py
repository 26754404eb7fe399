"""Rejected items: what a source holds that cannot be used, each with its reason. Nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Rejected:
    """An item of a source that is not in the shards.

    Attributes:
        what: kind of the item, such as `image` or `caption`.
        id: its id in the source, as text.
        reason: short category, for counting.
        detail: what is wrong with it.
    """

    what: str
    id: str
    reason: str
    detail: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def tally(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return the number of items by kind and reason, such as `image: missing`."""
    return dict(sorted(Counter(f"{item.what}: {item.reason}" for item in rejected).items()))
