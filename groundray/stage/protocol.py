"""What a stage is to the loop: data, model, loss and metrics. The loop never asks which stage it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from groundray import config
from groundray.data.plan import Plan
from groundray.data.schema import Dataset
from groundray.data.stream import Samples, Source, Step
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary

Metrics = dict[str, float]


class Best(NamedTuple):
    """How the best epoch of a stage is known: a validation metric, and whether less or more of it is better."""

    metric: str
    mode: Literal["min", "max"]

    def beats(self, new: float, old: float | None) -> bool:
        return old is None or (new < old if self.mode == "min" else new > old)


LOWEST_LOSS = Best("loss", "min")
HIGHEST_TOP1 = Best("top1", "max")
HIGHEST_PREDICATE_TOP1 = Best("predicate/top1", "max")


class Stage(Protocol):
    """A stage of training, bound to its settings and its data.

    A step goes `encode` a chunk at a time, each with its own dropout, then `loss` over the global batch. `loss` and
    `validate` talk to the other ranks through `loss.collectives`; `encode` never does.
    """

    @property
    def name(self) -> str:
        """Of the stage, and of the head that it trains (a key of `model.heads.HEADS`)."""
        ...

    @property
    def settings(self) -> config.Stage: ...

    @property
    def train(self) -> Source: ...

    @property
    def val(self) -> Source: ...

    @property
    def best(self) -> Best: ...

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the metrics that `validate` gives."""
        ...

    @property
    def sees_images(self) -> bool:
        """Whether there is an image to withhold, to tell what is known without looking."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """What the numbers of its data stand for, which fixes the size of its head."""
        ...

    def prepare(self, model: GroundedModel) -> None:
        """Freeze what this stage does not train, and set its dropout."""
        ...

    def encode(self, model: GroundedModel, batch: Any) -> Any:
        """What the loss needs of a chunk: its embeddings, scores or logits, in at least float32."""
        ...

    def loss(self, encoded: list[Any]) -> tuple[Tensor, Metrics]:
        """The loss over the global batch, the same on every rank, and what else is worth logging of the step.

        The gradient of a parameter is the sum over ranks of what its backward leaves there.
        """
        ...

    def validate(self, encode: Callable[[Any], Any], steps: Iterable[Step]) -> Metrics:
        """The metrics of the whole validation set, the same on every rank; `encode` is bound to the model."""
        ...


def source(settings: config.Settings, stage: config.Stage, dataset: Dataset, samples: Samples, shuffle: bool) -> Source:
    """What a stage reads: shuffled and in whole batches to train on, or all of it in its own order to validate on."""
    plan = Plan(
        group_sizes=tuple(dataset.group_sizes.tolist()),
        batch_size=stage.batch_size,
        chunks=settings.chunks,
        window=settings.data.window,
        seed=settings.run.seed,
        shuffle=shuffle,
        drop_last=shuffle,
    )
    return Source(dataset, samples, plan)


def check_vocabulary(train: Dataset, val: Dataset, **expected: int | None) -> Vocabulary:
    """The vocabulary of a stage's training shards, which must be that of its validation shards too.

    Args:
        expected: how many words of a kind there must be, where the settings say so.

    Raises:
        ValueError: the two differ, or a number is not the expected one; the message names the repair.
    """
    for kind, words in train.vocabulary.items():
        others = val.vocabulary.get(kind, ())
        if words != others:
            odd = ", ".join(sorted(set(words) ^ set(others))[:5])
            raise ValueError(
                f"{train.folder} and {val.folder} number their {kind} differently ({len(words)} and {len(others)} of "
                f"them{f'; only one has {odd}' if odd else ''}): prepare both in one go, or the second "
                "with --vocabulary of the first"
            )
    vocabulary = vocabulary_of(train)
    for kind, count in expected.items():
        if count is not None and count != len(vocabulary[kind]):
            raise ValueError(
                f"{train.folder}: expected {count} {kind} as the settings say, got {len(vocabulary[kind])}"
            )
    return vocabulary


def vocabulary_of(dataset: Dataset) -> Vocabulary:
    """The vocabulary of a data set, without the `none` that scene graphs have at 0."""
    return {kind: words[1:] if dataset.kind == "scene_graphs" else words for kind, words in dataset.vocabulary.items()}
