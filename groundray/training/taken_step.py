"""A step that a rank has taken. On a GPU its metrics are read after the next step is enqueued, so that the device never
waits for the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from groundray.data.stream import Step
from groundray.stage.protocol import Metrics, Scalars
from groundray.training.non_finite import is_finite
from groundray.training.timing import StepTimes


class Readback:
    """Scalars on their way to the host: copied together, into pinned memory, behind the work enqueued so far."""

    def __init__(self, scalars: Scalars):
        self._names = tuple(scalars)
        values = torch.stack([scalar.detach() for scalar in scalars.values()])
        self._values = values.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied:
            self._copied.record()

    def read(self) -> Metrics:
        """Returns the scalars; waits for the device until it has computed them."""
        if self._copied:
            self._copied.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


@dataclass(frozen=True)
class TakenStep:
    """A step of the optimizer, with what is to be reported of it.

    Attributes:
        number: steps of the stage, with this one.
        scalars: its loss, the norm of its gradient and the stage's other metrics.
        learning_rates: `learning_rate`, and `learning_rate/PART` of the parts that have another.
        times: how long its parts took.
        samples: the ids of its samples on all ranks, chunk by chunk; None if they are not recorded.
    """

    batch: Step
    number: int
    scalars: Readback
    learning_rates: Metrics
    times: StepTimes
    samples: list[list[str]] | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """All metrics of the step; waits for its end."""
        times = self.times.metrics()
        return self.scalars.read() | self.learning_rates | times

    @property
    def is_finite(self) -> bool:
        """True if its loss and gradient are finite, so that it has changed the weights."""
        return is_finite(self.metrics)
