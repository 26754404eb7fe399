"""Progress of parts that are written: of their samples, or of the parts where nobody knows the number of samples."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field

from groundray.cli.progress import Progress
from groundray.data.sources.protocol import ITEMS_PER_PART, Split


@dataclass
class PartProgress:
    """Shows samples and parts that are done, of all that there are as far as it is known, and the time that is left.

    Attributes:
        splits: that were opened so far; more may come.
        samples, parts: numbers of those that are done.
    """

    progress: Progress
    splits: list[Split] = field(default_factory=list)
    samples: int = 0
    parts: int = 0

    def tell(self, samples: int, parts: int) -> None:
        """Show that more was done."""
        self.samples += samples
        self.parts += parts
        samples_in_all = _sum([split.total for split in self.splits])
        parts_in_all = _sum([_parts_of(split) for split in self.splits])
        if samples_in_all is None and parts_in_all is not None:
            self.progress.update("parts", self.parts, parts_in_all, detail=f"{self.samples:,} samples")
        else:
            parts_of = f"{self.parts:,}/{parts_in_all:,}" if parts_in_all else f"{self.parts:,}"
            self.progress.update("samples", self.samples, samples_in_all, detail=f"{parts_of} parts")


def _parts_of(split: Split) -> int | None:
    """Return the number of parts of a split; None if it is not known before they are made."""
    if isinstance(split.parts, Sized):
        return len(split.parts)
    return None if split.total is None else -(-split.total // ITEMS_PER_PART)


def _sum(numbers: list[int | None]) -> int | None:
    return None if None in numbers else sum(filter(None, numbers))
