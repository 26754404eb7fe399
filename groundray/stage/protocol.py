"""What a stage is to the loop: data, model, loss and metrics. The loop never asks which stage it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from groundray import config
from groundray.data.stream import Source, Step

Metrics = dict[str, float]


class Best(NamedTuple):
    """How the best epoch of a stage is known: a validation metric, and whether less or more of it is better."""

    metric: str
    order: Literal["min", "max"]

    def beats(self, new: float, old: float | None) -> bool:
        return old is None or (new < old if self.order == "min" else new > old)


class Stage(Protocol):
    """A stage of training, bound to its settings and its data.

    A step goes `encode` a chunk at a time, each with its own dropout, then `loss` over the global batch. `loss` and
    `validate` talk to the other ranks through `loss.collectives`; `encode` never does.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> config.Stage: ...

    @property
    def train(self) -> Source: ...

    @property
    def val(self) -> Source: ...

    @property
    def best(self) -> Best: ...

    def prepare(self, model: Any) -> None:
        """Freeze what this stage does not train, and set its dropout."""
        ...

    def encode(self, model: Any, batch: Any) -> Any:
        """The embeddings of a chunk."""
        ...

    def loss(self, encoded: list[Any]) -> tuple[Tensor, Metrics]:
        """The loss over the global batch, the same on every rank, and what else is worth logging of the step.

        The gradient of a parameter is the sum over ranks of what its backward leaves there.
        """
        ...

    def validate(self, encode: Callable[[Any], Any], steps: Iterable[Step]) -> Metrics:
        """The metrics of the whole validation set, the same on every rank; `encode` is bound to the model."""
        ...
