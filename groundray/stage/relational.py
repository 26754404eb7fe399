"""The relational stage: pairs of objects, each seen by its phrase, are scored for every predicate (paper, stage 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import SceneGraphBatch
from groundray.data.image_inputs import CentreCrop
from groundray.data.scene_graphs import SceneGraphSamples
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.data.tokenization import WordPieceTokenizer
from groundray.distributed import sum_over_chunks
from groundray.loss.relation_loss import RelationLoss, Scored, annotated_with, relation_loss
from groundray.model.freezing import freeze, set_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary, pooled
from groundray.model.relation_module import RelationalModule
from groundray.stage.grounding import counted_tokens
from groundray.stage.protocol import HIGHEST_PREDICATE_TOP1, Best, Metrics, check_vocabulary, source, vocabulary_of
from groundray.stage.topk import TOP, hits


@dataclass(frozen=True)
class RelationalStage:
    """Loss_rel, Loss_obj and the objects' cross-entropy over the global batch, on scene graphs."""

    settings: config.Relational
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "relational"
    best: Best = HIGHEST_PREDICATE_TOP1
    metric_names: tuple[str, ...] = ("loss", *(f"{what}/top{k}" for what in ("predicate", "object") for k in TOP))
    sees_images: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> RelationalStage:
        """The stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind or vocabulary, or fewer than a batch.
        """
        stage: config.Relational = settings.stage("relational")
        train, val = (Dataset.open(shards, "scene_graphs") for shards in (stage.train, stage.val))
        words = check_vocabulary(train, val, predicates=stage.predicates, classes=stage.classes)
        return RelationalStage(
            stage,
            scene_graphs(settings, stage, tokenizer, train, shuffle=True),
            scene_graphs(settings, stage, tokenizer, val, shuffle=False),
            words,
        )

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout, self.settings.channel_dropout)

    def encode(self, model: GroundedModel, batch: SceneGraphBatch) -> Scored:
        return encode(model, batch, self.settings.special_tokens)

    def loss(self, encoded: list[Scored]) -> tuple[Tensor, Metrics]:
        found = self._loss(encoded)
        parts = {"predicate": found.predicate, "pair": found.pair, "object": found.object}
        return found.total, {f"{name}/loss": loss.item() for name, loss in parts.items()}

    def validate(self, encode: Callable[[SceneGraphBatch], Scored], steps: Iterable[Step]) -> Metrics:
        """Loss a batch in the training size, and top-k of each triplet's predicate and each object's class."""
        counts, losses = Counts(), []
        for step in steps:
            scored = [encode(batch) for _, batch in step.chunks]
            losses.append(self._loss(scored).total.item())
            counts.add(scored)
        return {"loss": sum(losses) / len(losses), **counts.metrics()}

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
    """Scene graphs: shuffled, or in their own order."""
    words = vocabulary_of(dataset)
    samples = SceneGraphSamples(
        tokenizer=WordPieceTokenizer(tokenizer.backend_tokenizer.to_str(), stage.max_tokens),
        image_inputs=CentreCrop(stage.resize or settings.model.image_size, settings.model.image_size),
        predicates=len(words["predicates"]),
        classes=len(words["classes"]),
    )
    return source(settings, stage, dataset, samples, shuffle)


def encode(model: GroundedModel, batch: SceneGraphBatch, special_tokens: bool) -> Scored:
    """The scores of a batch's triplets and the logits of its objects; it may have none of either."""
    module = model.head(RelationalModule)
    V = model.visual(batch.images) if len(batch) else model.visual.empty()
    if len(batch.tokens):
        tokens = model.language(batch.tokens, batch.attention_mask)
        phrases = pooled(tokens, counted_tokens(batch.attention_mask, special_tokens))
    else:
        phrases = V.new_zeros(0, model.width)
    seen = module.attention(phrases, V, batch.image)
    S, logits = module.scores(module.space(seen), batch.pairs), module.classifier(seen)
    if S.dtype == torch.bfloat16:
        S, logits = S.float(), logits.float()
    annotated = annotated_with(batch.pairs, batch.predicate, S.shape[1])
    return Scored(S, batch.predicate, annotated, logits, batch.classes, len(batch))


class Counts:
    """How many predicates and objects a model finds, added up over batches."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, scored: Iterable[Scored]) -> None:
        for one in scored:
            right = [hits(one.S, one.predicate), hits(one.logits, one.classes)]
            totals = right[0].new_tensor([len(one.S), len(one.classes)])
            self._parts.append(torch.cat([*right, totals]))

    def metrics(self) -> Metrics:
        """`predicate/top1` and so on, over all ranks: shares from 0 to 1; of nothing at all the share is 0."""
        found = sum_over_chunks([torch.stack(self._parts).sum(dim=0)]).tolist()
        *right, triplets, objects = found
        names = [(what, k) for what in ("predicate", "object") for k in TOP]
        return {
            f"{what}/top{k}": count / max(1, triplets if what == "predicate" else objects)
            for (what, k), count in zip(names, right, strict=True)
        }
