"""What the loop needs to know of the machinery that runs it, and the version of it that runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, stream
from groundray.training.events import Event


class Worker(Protocol):
    """One of `world_size` training workers."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    @property
    def device(self) -> str: ...

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        """This rank's steps from the cursor to the end of the last epoch, on its device."""
        ...

    def emit(self, event: Event) -> None:
        """Tell the driver; returns at once."""
        ...


@dataclass(frozen=True)
class InProcess:
    """The only worker, in the driver's own process: no Ray."""

    observe: Callable[[Event], None]
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        return (step.to(self.device) for step in stream(source, cursor, epochs))

    def emit(self, event: Event) -> None:
        self.observe(event)
