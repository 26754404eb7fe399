"""Rejected items: what a source holds that cannot be used, each with its reason. Nothing is dropped silently."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import BinaryIO, Protocol, cast

IN_MEMORY = 2**20  # bytes of a log; the rest is on disk


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


class Rejections(Protocol):
    """Takes rejected items: a list, or a log on disk."""

    def append(self, object: Rejected, /) -> None: ...


class RejectedLog:
    """Rejected items as lines of JSON in a temporary file: there may be as many as the source has items.

    Attributes:
        tally: number of items by kind and reason, such as `image: missing`.
        first: the first item.
    """

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()
        self.first: Rejected | None = None
        self._file = cast(BinaryIO, tempfile.SpooledTemporaryFile(IN_MEMORY))  # noqa: SIM115  ends with the log

    def __del__(self) -> None:
        self._file.close()

    def append(self, item: Rejected, /) -> None:
        self.first = self.first or item
        self.tally[_label(item)] += 1
        # a lone surrogate, which UTF-8 cannot hold, becomes JSON's own escape of it
        line = json.dumps(item.as_json(), ensure_ascii=False) + "\n"
        self._file.write(line.encode(errors="backslashreplace"))

    def extend(self, items: Iterable[Rejected]) -> None:
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return self.tally.total()

    def __iter__(self) -> Iterator[Rejected]:
        return (Rejected(**json.loads(line)) for line in self.open())

    def open(self) -> BinaryIO:
        """Return the lines as a stream at its start. Nothing may be added after."""
        self._file.seek(0)
        return self._file


def tally(rejected: Iterable[Rejected]) -> dict[str, int]:
    """Return the number of items by kind and reason, such as `image: missing`."""
    return dict(sorted(Counter(map(_label, rejected)).items()))


def summary(tally: Mapping[str, int]) -> str:
    """Return the number of rejected items by reason, in one line."""
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(tally.items())) or "nothing rejected"


def _label(item: Rejected) -> str:
    return f"{item.what}: {item.reason}"
