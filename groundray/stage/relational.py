"""The relational stage: pairs of visually grounded objects are scored for every predicate (paper, stage 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import SceneGraphBatch
from groundray.data.scene_graphs import SceneGraphSamples
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.data.tokenization import WordPieceTokenizer
from groundray.device_copy import to_device
from groundray.distributed import sum_over_chunks
from groundray.loss.relation_loss import RelationLoss, Scored, annotated_with, relation_loss
from groundray.model.freezing import freeze, set_dropout, set_language_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary
from groundray.model.pooling import at_least_float32, counted_tokens, mean_of_valid
from groundray.model.relation_module import RelationalModule
from groundray.stage.metrics import TOP_K, top_k_counts
from groundray.stage.protocol import (
    HIGHEST_PREDICATE_TOP1,
    Best,
    Metrics,
    Scalars,
    centre_crop,
    check_vocabulary,
    source,
    vocabulary_of,
)


@dataclass(frozen=True)
class RelationalStage:
    """Weighted sum of Loss_rel, Loss_obj and the objects' cross-entropy over the global batch, on scene graphs."""

    settings: config.Relational
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "relational"
    best: Best = HIGHEST_PREDICATE_TOP1
    metric_names: tuple[str, ...] = ("loss", *(f"{what}/top{k}" for what in ("predicate", "object") for k in TOP_K))
    sees_images: bool = True
    takes_keys: bool = False

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> RelationalStage:
        """Open the stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, with other vocabularies, or fewer than
                a batch.
        """
        stage: config.Relational = settings.stage("relational")
        train, val = (Dataset.open(shards, "scene_graphs") for shards in (stage.train, stage.val))
        vocabulary = check_vocabulary(train, val, predicates=stage.predicates, classes=stage.classes)
        return RelationalStage(
            stage,
            scene_graphs(settings, stage, tokenizer, train, shuffle=True),
            scene_graphs(settings, stage, tokenizer, val, shuffle=False),
            vocabulary,
        )

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout, self.settings.channel_dropout)
        set_language_dropout(model, self.settings.language_dropout)

    def encode(self, model: GroundedModel, batch: SceneGraphBatch) -> Scored:
        return encode(model, batch, self.settings.special_tokens)

    def loss(self, encoded: list[Scored]) -> tuple[Tensor, Scalars]:
        loss = self._loss(encoded)
        return loss.total, {"predicate/loss": loss.predicate, "pair/loss": loss.pair, "object/loss": loss.object}

    def validate(self, encode: Callable[[SceneGraphBatch], Scored], steps: Iterable[Step]) -> Metrics:
        """Return the mean of the batches' training losses, and top-k accuracies of predicates and object classes."""
        counts, losses = TopKCounts(), []
        for step in steps:
            scored = [encode(batch) for _, batch in step.chunks]
            losses.append(self._loss(scored).total)
            counts.add(scored)
        return {"loss": sum(torch.stack(losses).tolist()) / len(losses), **counts.metrics()}

    def _loss(self, scored: list[Scored]) -> RelationLoss:
        weights = self.settings.weights
        return relation_loss(
            scored,
            self.settings.temperature,
            (weights.predicate, weights.pair, weights.object),
            self.settings.reduction,
        )


def scene_graphs(
    settings: config.Settings,
    stage: config.Relational,
    tokenizer: PreTrainedTokenizerFast,
    dataset: Dataset,
    shuffle: bool,
) -> Source:
    """Return a source of scene graphs: shuffled, for training, or in the data set's order, for validation."""
    vocabulary = vocabulary_of(dataset)
    samples = SceneGraphSamples(
        tokenizer=WordPieceTokenizer.of(tokenizer, stage.max_tokens),
        image_inputs=centre_crop(stage, settings.model.image_size, training=shuffle),
        predicates=len(vocabulary["predicates"]),
        classes=len(vocabulary["classes"]),
    )
    return source(settings, stage, dataset, samples, shuffle)


def encode(model: GroundedModel, batch: SceneGraphBatch, special_tokens: bool) -> Scored:
    """Return the scores of a batch's triplets and the logits of its objects. The batch may have none of either.

    Args:
        special_tokens: whether the mean over a phrase includes special tokens, such as [CLS] and [SEP].
    """
    module = model.head(RelationalModule)
    V = model.visual(batch.images) if len(batch) else model.visual.empty()
    if len(batch.tokens):
        tokens = model.language(batch.tokens, batch.attention_mask)
        phrases = mean_of_valid(
            tokens, counted_tokens(batch.attention_mask, special_tokens, model.language.special_tokens)
        )
    else:
        phrases = V.new_zeros(0, model.width)
    objects = module.attention(phrases, V, batch.image)
    S = at_least_float32(module.scores(module.space(objects), batch.pairs))
    logits = at_least_float32(module.classifier(objects))
    annotated = annotated_with(batch.pairs, batch.predicate, S.shape[1])
    return Scored(S, batch.predicate, annotated, logits, batch.classes, len(batch))


class TopKCounts:
    """Number of predicates and object classes among the k highest scores, added up over batches."""

    def __init__(self) -> None:
        self._counts: list[Tensor] = []

    def add(self, scored: Iterable[Scored]) -> None:
        """Add the counts of some chunks."""
        for chunk in scored:
            correct = [top_k_counts(chunk.S, chunk.predicate), top_k_counts(chunk.logits, chunk.classes)]
            totals = torch.tensor([len(chunk.S), len(chunk.classes)])
            self._counts.append(torch.cat([*correct, to_device(totals, chunk.S.device)]))

    def metrics(self) -> Metrics:
        """Return accuracies over all ranks, `predicate/top1` and so on, from 0 to 1; 0 where nothing was counted."""
        *correct, triplets, objects = sum_over_chunks([torch.stack(self._counts).sum(dim=0)]).tolist()
        names = [(what, k) for what in ("predicate", "object") for k in TOP_K]
        return {
            f"{what}/top{k}": count / max(1, triplets if what == "predicate" else objects)
            for (what, k), count in zip(names, correct, strict=True)
        }
