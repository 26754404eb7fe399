"""Gauges of a training worker in Ray's metrics, which each node of a cluster exports for Prometheus."""

from __future__ import annotations

import time
from typing import NamedTuple

from ray.util.metrics import Gauge

from groundray.training.events import EpochDone, Event, StageDone, StepDone

TAGS = ("run", "stage", "rank")
RECORD_SECONDS = 1.0  # between two recorded steps; Ray exports the last values every 10 s, never more often than this


class Described(NamedTuple):
    """A gauge.

    Attributes:
        description: what it shows, with its unit.
        metric: the metric of a step (`StepDone.metrics`) that it shows, times `factor`; empty: another value.
        tag: a tag besides TAGS.
    """

    description: str
    metric: str = ""
    factor: float = 1.0
    tag: str = ""


GAUGES = {
    "groundray_loss": Described("loss of the global batch", "loss"),
    "groundray_gradient_norm": Described("norm of the gradient before clipping", "gradient_norm"),
    "groundray_learning_rate": Described("learning rate", "learning_rate"),
    "groundray_samples_per_second": Described(
        "samples of the global batch per second; 0 once the stage has ended", "samples_per_second"
    ),
    "groundray_time_fraction": Described("fraction of a step's time, 0 to 1, that is spent on a part", tag="part"),
    "groundray_peak_memory_bytes": Described(
        "peak memory of the worker's process, or of its GPU if it has one", "peak_memory_gb", 1e9
    ),
    "groundray_flop_utilisation": Described("fraction of the GPU's peak rate, 0 to 1", "flop_utilisation"),
    "groundray_slowest_worker_ratio": Described(
        "time of the slowest worker to the median of all workers; from rank 0 of several", "slowest_worker_ratio"
    ),
    "groundray_skipped_steps": Described("skipped steps, whose loss or gradient was not finite", "skipped_steps"),
    "groundray_step": Described("steps of the stage that are done"),
    "groundray_steps": Described("steps of the whole stage"),
    "groundray_epoch": Described("epoch of the stage, from 1"),
    "groundray_validation": Described("a metric of the stage's last validation; from rank 0", tag="metric"),
}


class Gauges:
    """Shows in GAUGES what a worker's events say of its training. A value that is not finite leaves a gauge unchanged,
    as Ray's exporter drops it.

    Args:
        run: the name of the run.
    """

    def __init__(self, run: str, rank: int):
        self._rank = rank
        self._gauges = {
            name: Gauge(name, one.description, (*TAGS, one.tag) if one.tag else TAGS) for name, one in GAUGES.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": _ascii(run), "rank": str(rank)})
        self._step: StepDone | None = None  # the last one, if it is not recorded
        self._recorded_at = float("-inf")

    def observe(self, event: Event) -> None:
        """Record a validation, the end of a stage, or a step if none was recorded within RECORD_SECONDS."""
        match event:
            case StepDone():
                self._step = event
                if time.monotonic() - self._recorded_at > RECORD_SECONDS:
                    self._record_step()
            case EpochDone():
                self._record_step()
                for metric, value in event.metrics.items() if self._rank == 0 else ():
                    self._set("groundray_validation", value, event.stage, metric)
            case StageDone():
                self._record_step()
                self._set("groundray_samples_per_second", 0.0, event.stage)
            case _:
                pass

    def _record_step(self) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        self._recorded_at = time.monotonic()
        for name, one in GAUGES.items():
            if one.metric in step.metrics:
                self._set(name, step.metrics[one.metric] * one.factor, step.stage)
        for metric, value in step.metrics.items():
            if metric.startswith("time/"):
                self._set("groundray_time_fraction", value, step.stage, metric.removeprefix("time/"))
        self._set("groundray_step", step.step, step.stage)
        self._set("groundray_steps", step.steps, step.stage)
        self._set("groundray_epoch", step.epoch + 1, step.stage)

    def _set(self, name: str, value: float, stage: str, other: str = "") -> None:
        tag = GAUGES[name].tag
        self._gauges[name].set(value, {"stage": _ascii(stage)} | ({tag: _ascii(other)} if tag else {}))


def _ascii(text: str) -> str:
    """Return a text as the value of a tag: Ray takes ASCII alone."""
    return text.encode("ascii", "backslashreplace").decode()
