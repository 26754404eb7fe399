"""The visual stage: image classification trains the visual stream (paper, stage 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import LabelledBatch
from groundray.data.image_inputs import CentreCrop, RandomCrop
from groundray.data.labelled import LabelledSamples
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.distributed import sum_over_chunks
from groundray.model.freezing import freeze, set_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Classifier, Vocabulary
from groundray.model.pooling import at_least_float32
from groundray.stage.metrics import top_k_counts
from groundray.stage.protocol import HIGHEST_TOP1, Best, Metrics, Scalars, check_vocabulary, source

TOP_K = (1, 5)


class Classified(NamedTuple):
    """Logits and true class of each image."""

    logits: Float[Tensor, "image class"]
    labels: Int[Tensor, " image"]


@dataclass(frozen=True)
class VisualStage:
    """Cross-entropy of the class, the mean over the global batch, on labelled images."""

    settings: config.Visual
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "visual"
    best: Best = HIGHEST_TOP1
    metric_names: tuple[str, ...] = ("loss", *(f"top{k}" for k in TOP_K))
    sees_images: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> VisualStage:
        """Open the stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, with other classes, or fewer than
                a batch.
        """
        stage: config.Visual = settings.stage("visual")
        train, val = (Dataset.open(shards, "labelled_images") for shards in (stage.train, stage.val))
        vocabulary = check_vocabulary(train, val, classes=stage.classes)
        size, classes = settings.model.image_size, len(vocabulary["classes"])
        augmented = LabelledSamples(RandomCrop(size, stage.crop_area, stage.flip, settings.run.seed), classes)
        centred = LabelledSamples(CentreCrop(stage.resize or size, size), classes)
        return VisualStage(
            stage,
            source(settings, stage, train, augmented, shuffle=True),
            source(settings, stage, val, centred, shuffle=False),
            vocabulary,
        )

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout)
        model.head(Classifier).set_dropout(self.settings.classifier_dropout)

    def encode(self, model: GroundedModel, batch: LabelledBatch) -> Classified:
        classifier = model.head(Classifier)
        if len(batch) == 0:
            return Classified(model.visual.empty().new_zeros(0, len(self.vocabulary["classes"])), batch.labels)
        return Classified(at_least_float32(classifier(model.visual(batch.images))), batch.labels)

    def loss(self, encoded: list[Classified]) -> tuple[Tensor, Scalars]:
        sums = [F.cross_entropy(chunk.logits, chunk.labels, reduction="sum") for chunk in encoded]
        return sum_over_chunks(sums) / self.train.plan.batch_size, {}

    def validate(self, encode: Callable[[LabelledBatch], Classified], steps: Iterable[Step]) -> Metrics:
        """Return the mean loss and the top-k accuracy, a fraction from 0 to 1."""
        sums = []
        for step in steps:
            for _, batch in step.chunks:
                logits, labels = encode(batch)
                loss = F.cross_entropy(logits, labels, reduction="sum")
                sums.append(
                    torch.cat([loss[None], top_k_counts(logits, labels, TOP_K), loss.new_full((1,), len(batch))])
                )
        loss, *correct, images = sum_over_chunks([torch.stack(sums).double().sum(dim=0)]).tolist()
        return {"loss": loss / images, **{f"top{k}": count / images for k, count in zip(TOP_K, correct, strict=True)}}
