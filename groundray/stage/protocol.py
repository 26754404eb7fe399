"""The interface between a stage of training and the loop: data, model, loss and metrics.

The loop does not know which stage it runs. To add a stage, implement `Stage` in a file of its own and add it to
`stages.STAGES`, its head to `model.build.HEADS`, and its settings to `config.settings`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from groundray import config
from groundray.data.image_inputs import CentreCrop
from groundray.data.plan import Plan
from groundray.data.schema import Dataset
from groundray.data.stream import Samples, Source, Step
from groundray.data.window import default_window
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary

Metrics = dict[str, float]
Scalars = Mapping[str, Tensor]  # metrics that are still on the device


Direction = Literal["min", "max"]


class Best(NamedTuple):
    """The criterion for the best validation of a stage.

    Attributes:
        metric: a name among the stage's `metric_names`.
        mode: whether the lowest or the highest value is best.
    """

    metric: str
    mode: Direction

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"

    @staticmethod
    def parse(text: str) -> Best:
        """Return the criterion of a setting `best`, such as `loss:min`."""
        metric, _, mode = text.rpartition(":")
        return Best(metric, "min" if mode == "min" else "max")

    def beats(self, new: float, old: float | None) -> bool:
        """Return whether a new value is better than the best so far (None before the first finite one).

        A value that is not finite is never the best, and any finite one is better than it: comparisons with NaN are
        false, so a NaN that became the best could not be beaten.
        """
        if not math.isfinite(new):
            return False
        return old is None or not math.isfinite(old) or (new < old if self.mode == "min" else new > old)


def direction_of(metric: str) -> Direction | None:
    """Return which values of a metric are better, by its name; None for a name that does not tell."""
    if metric.endswith(("loss", "perplexity", "_rank")):
        return "min"
    return "max" if re.search(r"(accuracy|precision|recall@\d+|top\d+)$", metric) else None


LOWEST_LOSS = Best("loss", "min")
HIGHEST_TOP1 = Best("top1", "max")
HIGHEST_PRECISION = Best("mean_average_precision", "max")
HIGHEST_PREDICATE_TOP1 = Best("predicate/top1", "max")


class Stage(Protocol):
    """A stage of training, bound to its settings and its data.

    A training step calls `encode` for each chunk of a rank, each with its own dropout, then `loss` once over the
    global batch. `loss` and `validate` communicate with other ranks through `groundray.distributed`; `encode` must
    not.
    """

    @property
    def name(self) -> str:
        """Name of the stage and of the head that it trains: a key of `stages.STAGES` and of `model.build.HEADS`."""
        ...

    @property
    def settings(self) -> config.Stage:
        """Settings of the stage: its section of the configuration."""
        ...

    @property
    def train(self) -> Source:
        """Training data, shuffled, in whole batches."""
        ...

    @property
    def val(self) -> Source:
        """Validation data in the data set's order; the last batch may be short, and chunks of it empty."""
        ...

    @property
    def best(self) -> Best:
        """Validation metric that chooses the weights with which the stage ends, unless the settings name one."""
        ...

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that `validate` returns."""
        ...

    @property
    def sees_images(self) -> bool:
        """True if batches hold images. The best weights are then validated a second time with blank images."""
        ...

    @property
    def takes_keys(self) -> bool:
        """True if it trains retrieval heads alone, over keys and queries of frozen streams (`contrastive.image_keys`),
        which may be computed once."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of the data's classes and predicates, which fix the size of the head; empty if there are none."""
        ...

    def prepare(self, model: GroundedModel) -> None:
        """Freeze the parameters that the stage does not train, and set its dropout rates."""
        ...

    def encode(self, model: GroundedModel, batch: Any) -> Any:
        """Return what the loss needs of a chunk: embeddings in the precision in which they were computed, scores or
        logits in at least float32.

        Args:
            batch: a batch of the stage's kind of data; it may hold no sample. Its tensors are on the model's device,
                but those that decide the shapes of others (`Batch.on_host`).

        Returns:
            A pytree of tensors, such as a NamedTuple.
        """
        ...

    def loss(self, encoded: list[Any]) -> tuple[Tensor, Scalars]:
        """Return the loss over the global batch, and other metrics to log for the step, as tensors of no dimension.

        The loss is the same on every rank. The gradient of a parameter is the sum over ranks of the gradients that
        `backward` leaves on each of them (see `groundray.distributed`).

        Args:
            encoded: one result of `encode` for each of the rank's chunks.
        """
        ...

    def validate(self, encode: Callable[[Any], Any], steps: Iterable[Step]) -> Metrics:
        """Return the metrics of the whole validation set, the same on every rank.

        Args:
            encode: the stage's `encode`, bound to the model in eval mode.
            steps: the rank's part of each validation batch.
        """
        ...


def criterion(stage: Stage) -> Best:
    """Return what chooses the best validation of a stage: the criterion of its settings, else its own."""
    return Best.parse(stage.settings.best) if stage.settings.best else stage.best


def check_reported(setting: str, metric: str, stage: Stage) -> None:
    """Raise SettingsError, with all metrics that there are, if a stage does not report the metric of a setting."""
    if metric not in stage.metric_names:
        raise config.SettingsError(
            f"{setting}: stage {stage.name} reports {', '.join(stage.metric_names)}, got {metric!r}"
            + config.did_you_mean(metric, stage.metric_names)
        )


def source(settings: config.Settings, stage: config.Stage, dataset: Dataset, samples: Samples, shuffle: bool) -> Source:
    """Return what a stage reads of a data set.

    Args:
        samples: how rows become batches.
        shuffle: True for training (shuffled, without the last short batch), False for validation (all rows in order).
    """
    plan = Plan(
        group_sizes=dataset.group_sizes,
        batch_size=stage.batch_size,
        chunks=settings.chunks,
        window=stage.window or settings.data.window or default_window(dataset, stage.batch_size, settings.chunks),
        seed=settings.run.seed,
        shuffle=shuffle,
        drop_last=shuffle,
    )
    return Source(dataset, samples, plan)


def centre_crop(stage: config.CentreCropped, image_size: int, training: bool) -> CentreCrop:
    """Return the crop of a stage's images in training, or in validation, analysis and search."""
    resize = stage.resize or image_size
    return CentreCrop(resize if training else stage.val_resize or resize, image_size)


def check_vocabulary(train: Dataset, val: Dataset, **expected: int | None) -> Vocabulary:
    """Return the vocabulary that a stage's training and validation shards share.

    Args:
        expected: number of words of a kind that the settings ask for; None for any number.

    Raises:
        ValueError: the vocabularies differ, or a number is not the expected one; the message names the repair.
    """
    for kind, words in train.vocabulary.items():
        others = val.vocabulary.get(kind, ())
        if words != others:
            unshared = ", ".join(sorted(set(words) ^ set(others))[:5])
            raise ValueError(
                f"{train.folder} and {val.folder} have different {kind} ({len(words)} and {len(others)}"
                f"{f'; in only one of them: {unshared}' if unshared else ', in another order'}): prepare both with one "
                "command, or the second with --vocabulary of the first"
            )
    vocabulary = vocabulary_of(train)
    for kind, count in expected.items():
        if count is not None and count != len(vocabulary[kind]):
            raise ValueError(
                f"{train.folder}: expected {count} {kind}, as the settings say, got {len(vocabulary[kind])}"
            )
    return vocabulary


def vocabulary_of(dataset: Dataset) -> Vocabulary:
    """Return the vocabulary of a data set, without the `none` at index 0 of scene graphs."""
    return {kind: words[1:] if dataset.kind == "scene_graphs" else words for kind, words in dataset.vocabulary.items()}
