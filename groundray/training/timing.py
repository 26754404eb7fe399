"""Timing of training steps: waiting for data, forward, backward, communication, optimizer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from groundray import distributed
from groundray.data.stream import Step
from groundray.resident_memory import peak_resident
from groundray.stage.protocol import Metrics
from groundray.training.peak_flops import peak_flops

Part = Literal["data_wait", "forward", "backward", "communication", "optimizer"]
PARTS: tuple[Part, ...] = ("data_wait", "forward", "backward", "communication", "optimizer")
Span = tuple[Part, Part | None, Any, Any]  # a part, the part around it, its start and its end


class StepTimer:
    """Attributes the time of a worker's steps to PARTS and `other`.

    Communication within a forward or backward pass counts as communication only. On a GPU, times are CUDA events in
    the stream, read when the step has ended.

    Args:
        device: of the model.
        world_size: workers that share a global batch.
        precision: of the stage, for the peak rate of the GPU.
        peak_tflops: that rate, in 10^12 operations per second; None for the one of the GPU's name.
    """

    def __init__(
        self,
        device: str = "cpu",
        world_size: int = 1,
        precision: str = "float32",
        peak_tflops: float | None = None,
    ):
        self._world_size = world_size
        self._clock: _Clock = _WallClock()
        self._peak: float | None = None
        if device.startswith("cuda"):
            self._clock = _DeviceClock()
            known = peak_flops(torch.cuda.get_device_name(device), precision)
            self._peak = peak_tflops * 1e12 if peak_tflops else known
        self._flops: float | None = None
        self._open: list[Part] = []
        self._spans: list[Span] = []
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last `end_step` (a validation, a checkpoint)."""
        self._start, self._spans = self._clock.now(), []

    @contextlib.contextmanager
    def span(self, part: Part) -> Iterator[None]:
        """Attribute the time inside the context to a part, and not to the part around it."""
        around = self._open[-1] if self._open else None
        self._open.append(part)
        start = self._clock.now()
        try:
            yield
        finally:
            self._spans.append((part, around, start, self._clock.now()))
            self._open.pop()

    def timed_batches(self, steps: Iterator[Step]) -> Iterator[Step]:
        """Yields the steps; the time until each is attributed to waiting for data."""
        while True:
            with self.span("data_wait"):
                step = next(steps, None)
            if step is None:
                return
            yield step

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Attribute collectives inside the context to communication, and count the operations of a GPU's first step."""
        counter = flop_counter() if self._peak and self._flops is None else None
        with distributed.timed_by(lambda: self.span("communication")), counter or contextlib.nullcontext():
            yield
        if counter:
            self._flops = float(counter.get_total_flops())

    def end_step(self, samples: int) -> StepTimes:
        """End a step of a global batch of `samples`; the next one begins here. Nothing is waited for."""
        end, peak = self._clock.now(), self._clock.peak_bytes()
        flops = self._flops / self._peak if self._peak and self._flops else None
        times = StepTimes(samples, self._world_size, self._start, end, tuple(self._spans), self._clock, peak, flops)
        self._start, self._spans = end, []
        return times


@dataclass(frozen=True)
class StepTimes:
    """The moments at which the parts of a step began and ended.

    Attributes:
        samples: of the global batch.
        world_size: workers that share it.
        start: moment of the clock, as is `end`.
        peak_bytes: the peak of memory so far.
        seconds_at_peak: time that the GPU needs for the step's operations at its peak rate; None if unknown.
    """

    samples: int
    world_size: int
    start: Any
    end: Any
    spans: tuple[Span, ...]
    clock: _Clock
    peak_bytes: int
    seconds_at_peak: float | None

    @cached_property
    def seconds(self) -> Metrics:
        """The seconds of each of PARTS and of `other`, which are the whole step. Waits for the step's end."""
        self.clock.wait(self.end)
        spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for part, around, start, end in self.spans:
            took = self.clock.between(start, end)
            spent[part] += took
            if around:
                spent[around] -= took
        spent["other"] = self.clock.between(self.start, self.end) - sum(spent.values())
        return {part: max(0.0, took) for part, took in spent.items()}

    def metrics(self) -> Metrics:
        """Returns speed, memory and the fractions of the step's time; waits for the step's end.

        `time/...` are fractions from 0 to 1 that add up to 1; `peak_memory_gb` is the peak so far of the process, or
        of the GPU if there is one; `flop_utilisation` is this rank's fraction of the GPU's peak rate.
        """
        spent = self.seconds
        seconds = self.clock.between(self.start, self.end)
        metrics = {
            "samples_per_second": self.samples / seconds,
            "samples_per_second_per_worker": self.samples / seconds / self.world_size,
            **{f"time/{part}": took / seconds for part, took in spent.items()},
            "peak_memory_gb": self.peak_bytes / 1e9,
        }
        if self.seconds_at_peak:
            metrics["flop_utilisation"] = self.seconds_at_peak / seconds
        return metrics


class _WallClock:
    """Times of this process, in seconds."""

    def now(self) -> Any:
        return time.perf_counter()

    def wait(self, moment: Any) -> None:
        pass

    def between(self, start: Any, end: Any) -> float:
        return end - start

    def peak_bytes(self) -> int:
        """Returns the peak resident memory of the process."""
        return peak_resident()


class _DeviceClock:
    """Times of a GPU's stream."""

    def now(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, moment: Any) -> None:
        """Wait until the stream has reached a moment. Those before it can be read then."""
        moment.synchronize()

    def between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()


_Clock = _WallClock | _DeviceClock


def flop_counter() -> FlopCounterMode:
    """Returns a context that counts the operations of matrix products, convolutions and match maps."""

    def match_map_flops(V: tuple[int, ...], words: tuple[int, ...], *_: Any, **__: Any) -> int:
        images, positions, dim = V
        return 2 * images * positions * dim * words[0]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.groundray.best_matches: match_map_flops})
