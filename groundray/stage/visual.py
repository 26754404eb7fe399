"""The visual stage: images are classified, which teaches the visual stream (paper, stage 1)."""

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
from groundray.stage.protocol import HIGHEST_TOP1, Best, Metrics, check_vocabulary, source
from groundray.stage.topk import hits

AT = (1, 5)


class Classified(NamedTuple):
    """The logits of each image, and its class."""

    logits: Float[Tensor, "image class"]
    labels: Int[Tensor, " image"]


@dataclass(frozen=True)
class VisualStage:
    """Cross-entropy of the class, on images of one thing each."""

    settings: config.Visual
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "visual"
    best: Best = HIGHEST_TOP1
    metric_names: tuple[str, ...] = ("loss", *(f"top{k}" for k in AT))
    sees_images: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> VisualStage:
        """The stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind or other classes, or fewer than a batch.
        """
        stage: config.Visual = settings.stage("visual")
        train, val = (Dataset.open(shards, "labelled_images") for shards in (stage.train, stage.val))
        words = check_vocabulary(train, val, classes=stage.classes)
        size, classes = settings.model.image_size, len(words["classes"])
        seen = LabelledSamples(RandomCrop(size, stage.crop_area, stage.flip, settings.run.seed), classes)
        held_out = LabelledSamples(CentreCrop(stage.resize or size, size), classes)
        return VisualStage(
            stage,
            source(settings, stage, train, seen, shuffle=True),
            source(settings, stage, val, held_out, shuffle=False),
            words,
        )

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout)
        model.head(Classifier).set_dropout(self.settings.classifier_dropout)

    def encode(self, model: GroundedModel, batch: LabelledBatch) -> Classified:
        classifier = model.head(Classifier)
        if len(batch) == 0:
            return Classified(model.visual.empty().new_zeros(0, len(self.vocabulary["classes"])), batch.labels)
        logits = classifier(model.visual(batch.images))
        return Classified(logits.float() if logits.dtype == torch.bfloat16 else logits, batch.labels)

    def loss(self, encoded: list[Classified]) -> tuple[Tensor, Metrics]:
        sums = [F.cross_entropy(one.logits, one.labels, reduction="sum") for one in encoded]
        return sum_over_chunks(sums) / self.train.plan.batch_size, {}

    def validate(self, encode: Callable[[LabelledBatch], Classified], steps: Iterable[Step]) -> Metrics:
        """Loss an image, and the share of images whose class is among the k most probable."""
        counted = []
        for step in steps:
            for _, batch in step.chunks:
                one = encode(batch)
                loss = F.cross_entropy(one.logits, one.labels, reduction="sum")
                counted.append(torch.cat([loss[None], hits(one.logits, one.labels, AT), loss.new_tensor([len(batch)])]))
        loss, *right, images = sum_over_chunks([torch.stack(counted).double().sum(dim=0)]).tolist()
        return {"loss": loss / images, **{f"top{k}": found / images for k, found in zip(AT, right, strict=True)}}
