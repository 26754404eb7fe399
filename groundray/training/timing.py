"""The timer of a training run: where the time of each step goes, and what it takes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from groundray import distributed
from groundray.data.stream import Step
from groundray.stage.protocol import Metrics

Part = Literal["data_wait", "forward", "backward", "communication", "optimizer"]
PARTS: tuple[Part, ...] = ("data_wait", "forward", "backward", "communication", "optimizer")

# Operations a second that a GPU can do at best, dense, in float32 without tensor cores and in bfloat16, by what its
# name contains (NVIDIA's data sheets, SXM versions).
PEAK_FLOPS: dict[str, dict[str, float]] = {
    "B200": {"float32": 75e12, "bf16": 2250e12},
    "H200": {"float32": 67e12, "bf16": 989e12},
    "H100": {"float32": 67e12, "bf16": 989e12},
    "A100": {"float32": 19.5e12, "bf16": 312e12},
    "L40S": {"float32": 91.6e12, "bf16": 362e12},
    "L4": {"float32": 30.3e12, "bf16": 121e12},
    "A10": {"float32": 31.2e12, "bf16": 125e12},
}


class StepTimer:
    """Books each moment of a worker's steps on one of PARTS; what is left over is its own.

    Communication inside of a forward or backward pass is booked as communication. On a GPU the moments are events in
    its stream of work, so nothing is held up to take them.

    Args:
        device: of the model.
        world_size: workers that share the samples.
        precision: of the stage, which fixes what the GPU could do at best.
    """

    def __init__(self, device: str = "cpu", world_size: int = 1, precision: str = "float32"):
        self._world_size = world_size
        self._clock: _Clock = _DeviceClock() if device.startswith("cuda") else _WallClock()
        self._peak = peak_flops(torch.cuda.get_device_name(device), precision) if device.startswith("cuda") else None
        self._flops: float | None = None
        self._open: list[Part] = []
        self.restart()

    def restart(self) -> None:
        """Leave out what happened since the last lap (a validation, a checkpoint)."""
        self._start = self._clock.now()
        self._spans: list[tuple[Part, Part | None, Any, Any]] = []

    @contextlib.contextmanager
    def span(self, part: Part) -> Iterator[None]:
        """Book the meantime on a part, and not on the part that it lies in."""
        around = self._open[-1] if self._open else None
        self._open.append(part)
        start = self._clock.now()
        try:
            yield
        finally:
            self._spans.append((part, around, start, self._clock.now()))
            self._open.pop()

    def timed_batches(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps, with the time until each of them booked as waiting for data."""
        while True:
            with self.span("data_wait"):
                step = next(steps, None)
            if step is None:
                return
            yield step

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A step: what ranks exchange meanwhile is booked, and the first step's operations are counted on a GPU."""
        counter = flop_counter() if self._peak and self._flops is None else None
        with distributed.timed_by(lambda: self.span("communication")), counter or contextlib.nullcontext():
            yield
        if counter:
            self._flops = float(counter.get_total_flops())

    def step_metrics(self, samples: int) -> Metrics:
        """Speed and shares since the last lap, for a global batch of so many samples.

        `time/...` are shares from 0 to 1 which add up to 1; memory is the process's peak so far in GB, the GPU's where
        there is one; `flop_utilisation` is the share of the GPU's peak operations that this rank's model did.
        """
        seconds = self._clock.between(self._start, self._clock.now())
        spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        for part, around, start, end in self._spans:
            took = self._clock.between(start, end)
            spent[part] += took
            if around:
                spent[around] -= took
        spent["other"] = seconds - sum(spent.values())
        self.restart()
        metrics = {
            "samples_per_second": samples / seconds,
            "samples_per_second_per_worker": samples / seconds / self._world_size,
            **{f"time/{part}": max(0.0, took) / seconds for part, took in spent.items()},
            "peak_memory_gb": self._clock.peak_bytes() / 1e9,
        }
        if self._peak and self._flops:
            metrics["flop_utilisation"] = self._flops / seconds / self._peak
        return metrics


class _WallClock:
    """Moments as this process has them."""

    def now(self) -> Any:
        return time.perf_counter()

    def between(self, start: Any, end: Any) -> float:
        """Seconds."""
        return end - start

    def peak_bytes(self) -> int:
        """The most memory that the process has held."""
        kilobytes = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes


class _DeviceClock:
    """Moments as a GPU's stream of work has them."""

    def now(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()


_Clock = _WallClock | _DeviceClock


def flop_counter() -> FlopCounterMode:
    """Counts the operations of matrix products and convolutions meanwhile, the match maps' among them."""

    def of_match_maps(V: tuple[int, ...], words: tuple[int, ...], *_: Any, **__: Any) -> int:
        images, positions, dim = V
        return 2 * images * positions * dim * words[0]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.groundray.best_matches: of_match_maps})


def peak_flops(gpu: str, precision: str) -> float | None:
    """Operations a second that a GPU can do at best in a precision; None where that is not known."""
    # the longest name first: an L40S is no L4
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if name in gpu:
            return PEAK_FLOPS[name].get(precision)
    return None
