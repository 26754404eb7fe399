"""A Ray Train worker as the loop knows it, and the mailbox between rank 0 and the driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray

from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step
from groundray.runtime import compat
from groundray.runtime.data.ray_stream import stream
from groundray.runtime.train.resources import DataCpuBudget
from groundray.training.events import Event, StepDone
from groundray.training.watchdog import Watchdog

FLUSH_SECONDS = 1.0


@ray.remote(num_cpus=0)
class Mailbox:
    """Lives beside the driver. Holds what workers told until the driver takes it, and what the driver wants of them."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._wanted = ""
        self._farthest: dict[str, int] = {}

    def put(self, events: list[Event]) -> str:
        """Tell the driver; the answer is the notice for rank 0, if there is one."""
        self._events += events
        for event in events:
            if isinstance(event, StepDone):
                self._farthest[event.stage] = max(event.step, self._farthest.get(event.stage, 0))
        return self._wanted

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def request_stop(self, notice: str) -> None:
        """Give rank 0 notice with its next answer. The end of the run outweighs everything else."""
        if self._wanted != "stopped":
            self._wanted = notice

    def clear_request(self) -> str:
        """Forget what was wanted of a group of workers that is no more; what is still wanted, of the run."""
        self.request_stop("")
        return self._wanted

    def steps_done(self) -> int:
        """How many steps the run has got to so far, each counted once."""
        return sum(self._farthest.values())


@dataclass
class RayWorker:
    """A Ray Train worker, as the loop knows it."""

    rank: int
    world_size: int
    device: str
    mailbox: Any
    cpu_budget: DataCpuBudget
    prefetch: int
    watchdog: Watchdog | None = None
    _unsent: list[Event] = field(default_factory=list)
    _sent: float = 0.0
    _answers: list[Any] = field(default_factory=list)
    _notice: str = ""

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        for step in stream(source, cursor, epochs, self.rank, self.world_size, self.cpu_budget, self.prefetch):
            self.heartbeat()
            yield step.to(self.device)

    def emit(self, event: Event) -> None:
        """Tell the driver, at most once a second for steps; ranks other than 0 have nothing of their own to tell."""
        self.heartbeat()
        if self.rank == 0:
            self._unsent.append(event)
            if not isinstance(event, StepDone) or time.monotonic() - self._sent > FLUSH_SECONDS:
                self._send()

    def flush(self) -> None:
        """Wait until the driver's mailbox has everything."""
        ray.get(self._send())

    def heartbeat(self) -> None:
        if self.watchdog:
            self.watchdog.heartbeat()

    def stop_reason(self) -> str:
        """From Ray, that the machine of a worker is taken away, or from the driver."""
        if not self._answers and time.monotonic() - self._sent > FLUSH_SECONDS:
            self._send()  # nothing was told for a while, as in a validation: ask
        done, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
        for answer in done:
            self._notice = ray.get(answer) or self._notice
        # `ray.train.get_preemption_info` would be a barrier; only rank 0 needs to know, and Ray tells each worker
        if self._notice != "stopped" and compat.is_preempted():
            return "preempted"
        return self._notice

    def _send(self) -> ray.ObjectRef[str]:
        sending = self.mailbox.put.remote(self._unsent)
        self._unsent, self._sent = [], time.monotonic()
        self._answers.append(sending)
        return sending
