"""The training loop's `Worker` on Ray Train."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from groundray.data import feature_stream
from groundray.data.device_copies import on_device
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step
from groundray.runtime import compat
from groundray.runtime.data.ray_stream import stream
from groundray.runtime.train.gauges import Gauges
from groundray.runtime.train.mailbox import FLUSH_SECONDS
from groundray.runtime.train.resources import DataCpuBudget
from groundray.stage.protocol import Metrics
from groundray.training.events import EpochDone, Event, StepDone
from groundray.training.stragglers import Stragglers
from groundray.training.watchdog import Watchdog


@dataclass
class RayWorker:
    """A Ray Train worker; implements `training.worker.Worker`.

    Args:
        report: takes each validation of a rank, and the last step that it has done (`reports.report`).
    """

    rank: int
    world_size: int
    device: str
    mailbox: Any
    cpu_budget: DataCpuBudget
    prefetch: int
    watchdog: Watchdog | None = None
    stragglers: Stragglers | None = None
    gauges: Gauges | None = None
    report: Callable[[EpochDone, StepDone | None], None] = lambda event, step: None
    _step: StepDone | None = None
    _unsent: list[Event] = field(default_factory=list)
    _sent: float = 0.0
    _answers: list[Any] = field(default_factory=list)
    _notice: str = ""

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        if source.local_features:
            threads = self.cpu_budget.cpus
            steps = feature_stream.stream(source, cursor, epochs, self.rank, self.world_size, threads, self.prefetch)
        else:
            steps = stream(source, cursor, epochs, self.rank, self.world_size, self.cpu_budget, self.prefetch)
            if self.device == "cpu":  # on a GPU, copies are made anyway
                steps = (step.cloned() for step in steps)
        for step in on_device(steps, self.device):
            self.heartbeat()
            yield step

    def emit(self, event: Event) -> None:
        """Send an event to the driver, from rank 0 only; step events at most once a second. Show it in the gauges, and
        report a validation to Ray Train, for which the ranks wait for each other."""
        self.heartbeat()
        if self.gauges:
            self.gauges.observe(event)
        if isinstance(event, StepDone):
            self._step = event
        elif isinstance(event, EpochDone):
            self.report(event, self._step)
        if self.rank == 0:
            self._unsent.append(event)
            if not isinstance(event, StepDone) or time.monotonic() - self._sent > FLUSH_SECONDS:
                self._send()

    def flush(self) -> None:
        """Send pending events, and wait until the mailbox has all."""
        ray.get(self._send())

    def heartbeat(self) -> None:
        if self.watchdog:
            self.watchdog.heartbeat()

    def step_timed(self, stage: str, seconds: Mapping[str, float]) -> Metrics:
        if not self.stragglers:
            return {}
        self.stragglers.add(stage, seconds)
        return self.stragglers.metrics

    def stop_reason(self) -> str:
        """Return the stop reason from the driver, or `preempted` if Ray is about to lose a machine of the run."""
        if not self._answers and time.monotonic() - self._sent > FLUSH_SECONDS:
            self._send()  # no event for a while, as in a validation: ask for the reason
        done, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
        for answer in done:
            self._notice = ray.get(answer) or self._notice
        # only rank 0 needs to know, and Ray informs each worker
        if self._notice != "stopped" and compat.is_preempted():
            return "preempted"
        return self._notice

    def _send(self) -> ray.ObjectRef[str]:
        sending = self.mailbox.put.remote(self._unsent)
        self._unsent, self._sent = [], time.monotonic()
        self._answers.append(sending)
        return sending
