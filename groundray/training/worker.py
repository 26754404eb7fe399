"""What the loop needs to know of the machinery that runs it, and the version of it that runs in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, stream
from groundray.training.events import Event


class Stopped(Exception):
    """A worker has ended on notice, its checkpoint written. The argument is the notice."""

    @property
    def notice(self) -> str:
        return str(self.args[0])


def heed(worker: Worker) -> None:
    """Raise Stopped where rank 0 has notice, and nothing has to be written first."""
    if worker.rank == 0 and (notice := worker.notice()):
        raise Stopped(notice)


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

    def alive(self) -> None:
        """Tell the watchdog that work goes on; `batches` and `emit` do too."""
        ...

    def notice(self) -> str:
        """Why this worker should write a checkpoint and end now (`preempted`, `stopped`); empty as long as it should
        not. Asked of rank 0, after each step."""
        ...


@dataclass(frozen=True)
class InProcess:
    """The only worker, in the driver's own process: no Ray."""

    observe: Callable[[Event], None]
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    noticed: Callable[[], str] = lambda: ""
    watched: Callable[[], None] = lambda: None

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        for step in stream(source, cursor, epochs):
            self.alive()
            yield step.to(self.device)

    def emit(self, event: Event) -> None:
        self.alive()
        self.observe(event)

    def alive(self) -> None:
        self.watched()

    def notice(self) -> str:
        return self.noticed()
