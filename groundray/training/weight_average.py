"""The exponential moving average of a stage's trained weights (`optimizer.ema`).

Training goes on with the weights themselves. What is validated, chosen as the best, handed on to the next stage and
exported is the average (Polyak and Juditsky 1992). Every rank has the same weights, and therefore the same average.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from groundray.model.weights import fill_tensors


class WeightAverage:
    """The moving average of the parameters that a model trains, which begins with their present values.

    After step n, counted from 1, an average is d average + (1 - d) weight, with d = min(decay, n / (n + 9)), as
    TensorFlow's ExponentialMovingAverage with `num_updates`: else a stage of fewer than 1 / (1 - decay) steps would
    mostly keep its first, random weights.

    Args:
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._trained: dict[str, Tensor] | None = None  # the weights, while their averages are in the model

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the averaged parameters."""
        return tuple(self._averages)

    def update(self, step: int) -> None:
        """Move the averages towards the weights after a step, counted from the stage's first, which is 1."""
        average = get_ema_multi_avg_fn(min(self._decay, step / (step + 9)))
        average(list(self._averages.values()), [p.detach() for p in self._parameters.values()], None)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Have the averages in the model's parameters within the context, which may be nested; no tensor is copied."""
        if self._trained is not None:
            yield
            return
        self._trained = self.trained()
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(self._trained)
            self._trained = None

    def trained(self) -> dict[str, Tensor]:
        """Return the weights with which training continues, by name, within and outside of `applied`."""
        return self._trained or {name: p.data for name, p in self._parameters.items()}

    def load(self, averages: Mapping[str, Tensor], origin: str) -> None:
        """Set the averages, by name.

        Raises:
            ValueError: some are missing, unexpected or of another shape; the message lists them.
        """
        fill_tensors(self._averages, averages, origin)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.data = tensors[name]


@contextlib.contextmanager
def averaged(average: WeightAverage | None) -> Iterator[None]:
    """Have the averages, if there are any, in the model's parameters within the context."""
    with average.applied() if average else contextlib.nullcontext():
        yield
