"""What a source holds that cannot be used: each thing with its reason, none of it lost silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Rejected:
    """Something of a source that is not in the shards.

    Attributes:
        what: `image` or `caption`.
        id: its id in the source, as text.
        reason: one of a few words, for counting.
        detail: what was found, for a person.
    """

    what: str
    id: str
    reason: str
    detail: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def tally(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many of each kind and reason, such as `image: missing`."""
    return dict(sorted(Counter(f"{item.what}: {item.reason}" for item in rejected).items()))
