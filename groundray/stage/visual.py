"""The visual stage: image classification trains the visual stream (paper, stage 1).

Shards of labelled images give one class an image, scene graphs the classes of all objects of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import LabelledBatch, MultiLabelledBatch
from groundray.data.image_inputs import CentreCrop, RandomCrop
from groundray.data.labelled import LabelledSamples, ObjectClassSamples
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.distributed import gather_rows, sum_over_chunks
from groundray.model.freezing import freeze, set_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Classifier, Vocabulary
from groundray.model.pooling import at_least_float32
from groundray.stage.metrics import average_precisions, top_k_counts
from groundray.stage.protocol import (
    HIGHEST_PRECISION,
    HIGHEST_TOP1,
    Best,
    Metrics,
    Scalars,
    check_vocabulary,
    source,
)

TOP_K = (1, 5)


class Classified(NamedTuple):
    """Logits of each image, and its class, or True for each of its classes."""

    logits: Float[Tensor, "image class"]
    labels: Int[Tensor, " image"] | Bool[Tensor, "image class"]


@dataclass(frozen=True)
class VisualStage:
    """Loss of the class or classes of an image, the mean over the global batch.

    On labelled images it is the cross-entropy of the class; on scene graphs the binary cross-entropy of each class,
    which an object of the image has or none has, summed over classes.
    """

    settings: config.Visual
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "visual"
    best: Best = HIGHEST_TOP1
    metric_names: tuple[str, ...] = ("loss", *(f"top{k}" for k in TOP_K))
    sees_images: bool = True
    takes_keys: bool = False
    several: bool = False  # classes an image

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> VisualStage:
        """Open the stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, with other classes, or fewer than
                a batch.
        """
        stage: config.Visual = settings.stage("visual")
        train = Dataset.open(stage.train, "labelled_images", "scene_graphs")
        val = Dataset.open(stage.val, train.kind)
        vocabulary = {"classes": check_vocabulary(train, val, classes=stage.classes)["classes"]}
        size, classes = settings.model.image_size, len(vocabulary["classes"])
        several = train.kind == "scene_graphs"
        samples = ObjectClassSamples if several else LabelledSamples
        augmented = samples(RandomCrop(size, stage.crop_area, stage.flip, settings.run.seed), classes)
        centred = samples(CentreCrop(stage.resize or size, size), classes)
        opened = VisualStage(
            stage,
            source(settings, stage, train, augmented, shuffle=True),
            source(settings, stage, val, centred, shuffle=False),
            vocabulary,
        )
        if not several:
            return opened
        metrics = ("loss", HIGHEST_PRECISION.metric)
        return replace(opened, best=HIGHEST_PRECISION, metric_names=metrics, several=True)

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout)
        model.head(Classifier).set_dropout(self.settings.classifier_dropout)

    def encode(self, model: GroundedModel, batch: LabelledBatch | MultiLabelledBatch) -> Classified:
        classifier = model.head(Classifier)
        if len(batch) == 0:
            return Classified(model.visual.empty().new_zeros(0, len(self.vocabulary["classes"])), batch.labels)
        return Classified(at_least_float32(classifier(model.visual(batch.images))), batch.labels)

    def loss(self, encoded: list[Classified]) -> tuple[Tensor, Scalars]:
        return sum_over_chunks([_loss(chunk) for chunk in encoded]) / self.train.plan.batch_size, {}

    def validate(self, encode: Callable[[Any], Classified], steps: Iterable[Step]) -> Metrics:
        """Return the mean loss and, from 0 to 1, the top-k accuracies, or the mean average precision of the classes.

        Classes that no validation image has are not part of that mean.
        """
        chunks = (encode(batch) for step in steps for _, batch in step.chunks)
        return _of_several_classes(chunks) if self.several else _of_one_class(chunks)


def _loss(chunk: Classified) -> Float[Tensor, ""]:
    """Return the sum of the images' losses."""
    if chunk.labels.dim() == 1:
        return F.cross_entropy(chunk.logits, chunk.labels, reduction="sum")
    return F.binary_cross_entropy_with_logits(chunk.logits, chunk.labels.to(chunk.logits.dtype), reduction="sum")


def _of_one_class(chunks: Iterable[Classified]) -> Metrics:
    sums = []
    for chunk in chunks:
        loss = _loss(chunk)
        sums.append(torch.cat([loss[None], top_k_counts(*chunk, TOP_K), loss.new_full((1,), len(chunk.logits))]))
    loss, *correct, images = sum_over_chunks([torch.stack(sums).double().sum(dim=0)]).tolist()
    return {"loss": loss / images, **{f"top{k}": count / images for k, count in zip(TOP_K, correct, strict=True)}}


def _of_several_classes(chunks: Iterable[Classified]) -> Metrics:
    chunks = list(chunks)
    loss = sum_over_chunks([torch.stack([_loss(chunk) for chunk in chunks]).double().sum(dim=0)])
    scores, labels = (gather_rows(torch.cat(parts)) for parts in zip(*chunks, strict=True))
    precision = average_precisions(scores, labels).nanmean()
    return {"loss": loss.item() / len(scores), HIGHEST_PRECISION.metric: precision.item()}
