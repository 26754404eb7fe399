"""The interface between the training loop and its process, and an implementation without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from groundray.data.decoding_processes import DecodingProcesses
from groundray.data.device_copies import on_device
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step
from groundray.stage.protocol import Metrics
from groundray.training.endings import Stopped
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
        """Yields this rank's steps from the cursor to the end of the last epoch, on its device."""
        ...

    def emit(self, event: Event) -> None:
        """Send an event to the driver; returns at once."""
        ...

    def heartbeat(self) -> None:
        """Tell the watchdog that the worker makes progress; `batches` and `emit` do so too."""
        ...

    def step_timed(self, stage: str, seconds: Mapping[str, float]) -> Metrics:
        """Record the seconds of a step's parts on this rank, and return metrics that compare the ranks: on rank 0 of
        several, those of `stragglers.Stragglers`. Returns at once."""
        ...

    def stop_reason(self) -> str:
        """Returns why the worker should write a checkpoint and end (`preempted`, `resized`, `stopped`), or "".

        Rank 0 is asked, after each step.
        """
        ...


def raise_if_stop_requested(worker: Worker) -> None:
    """Raise Stopped on rank 0 if the worker should end; for places where no checkpoint has to be written first."""
    if worker.rank == 0 and (reason := worker.stop_reason()):
        raise Stopped(reason)


@dataclass(frozen=True)
class InProcess:
    """The only worker, in the driver's own process.

    Args:
        observe: takes each event.
        get_stop_reason: returns the reason to end, or "".
        on_heartbeat: is called at each heartbeat.
        decoding: decodes the samples; by default this process does.
    """

    observe: Callable[[Event], None]
    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    get_stop_reason: Callable[[], str] = lambda: ""
    on_heartbeat: Callable[[], None] = lambda: None
    decoding: DecodingProcesses = field(default_factory=lambda: DecodingProcesses(0))

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        for step in on_device(self.decoding.stream(source, cursor, epochs), self.device):
            self.heartbeat()
            yield step

    def emit(self, event: Event) -> None:
        self.heartbeat()
        self.observe(event)

    def heartbeat(self) -> None:
        self.on_heartbeat()

    def step_timed(self, stage: str, seconds: Mapping[str, float]) -> Metrics:
        return {}

    def stop_reason(self) -> str:
        return self.get_stop_reason()
