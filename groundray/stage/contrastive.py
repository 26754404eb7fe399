"""Encoding, data and validation of captioned images, shared by the grounding and retrieval stages, analysis and search.

Two encoders give `Encoded` embeddings, whose similarity (`loss.match_map.similarity`) the contrastive loss compares:

    encode_for_grounding   an embedding for each image position and each token, from the grounding heads; or, pooled,
                           one unit vector for each image and each caption, their mean
    encode_for_retrieval   one unit vector for each image and each caption, from the retrieval heads
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import CaptionBatch, Keys
from groundray.data.captions import CaptionSamples
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.data.tokenization import WordPieceTokenizer
from groundray.distributed import on_every_rank
from groundray.loss.match_map import Kind
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads, RetrievalHeads
from groundray.model.pooling import at_least_float32, counted_tokens, pooled_images, pooled_texts
from groundray.model.relation_module import RelationalModule
from groundray.model.visual_stream import Images
from groundray.stage.metrics import recalls
from groundray.stage.protocol import Metrics, Scalars, centre_crop, source
from groundray.stage.recall import matched_ranks

Alignment = Literal["match_map", "pooled"]


class Encoded(NamedTuple):
    """Embeddings of images (V) and captions (W), in the precision in which they were computed.

    Attributes:
        valid: True for the tokens that the similarity averages over; on the host.
        temperature, bias: those of the loss, if it learns them; one number, once for each sample, so that its gradient
            goes the way of the embeddings' and is as exact over chunks and ranks.
    """

    V: Float[Tensor, "sample position dim"]
    W: Float[Tensor, "sample token dim"]
    valid: Bool[Tensor, "sample token"]
    temperature: Float[Tensor, " sample"] | None = None
    bias: Float[Tensor, " sample"] | None = None

    def on_host(self) -> Encoded:
        """Return the embeddings on the host, without what the loss learns."""
        return Encoded(self.V.cpu(), self.W.cpu(), self.valid)


def captioned_images(
    settings: config.Settings,
    stage: config.Grounding | config.Retrieval,
    tokenizer: PreTrainedTokenizerFast,
    shards: str,
    shuffle: bool,
) -> Source:
    """Return a source of captioned images.

    Args:
        shuffle: True for training: shuffles, and draws one of an image's captions at each visit; False for validation
            and analysis: keeps the data set's order and takes the first caption.

    Raises:
        FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch.
    """
    samples = CaptionSamples(
        tokenizer=WordPieceTokenizer.of(tokenizer, stage.max_tokens),
        image_inputs=centre_crop(stage, settings.model.image_size, training=shuffle),
        seed=settings.run.seed if shuffle else None,
    )
    return source(settings, stage, Dataset.open(shards, "captions"), samples, shuffle)


def encode_for_match_map(model: GroundedModel, batch: CaptionBatch, special_tokens: bool) -> Encoded:
    """Return an embedding for each image position and each token of a batch, which may be empty.

    Args:
        special_tokens: whether special tokens, such as [CLS] and [SEP], are valid tokens.
    """
    heads = model.head(GroundingHeads)
    if len(batch) == 0:
        # through the heads too, whose type depends on autocast: ranks exchange words of one type
        empty = model.visual.empty()
        words = empty.new_zeros(0, 0, model.width)
        return Encoded(heads.visual(empty), heads.language(words), batch.attention_mask)
    V = heads.visual(model.visual(batch.images))
    W = heads.language(model.language(batch.tokens, batch.attention_mask))
    return Encoded(V, W, counted_tokens(batch.attention_mask, special_tokens, model.language.special_tokens))


def encode_for_grounding(
    model: GroundedModel, batch: CaptionBatch, special_tokens: bool, alignment: Alignment
) -> Encoded:
    """Return the embeddings that the grounding stage compares, for the match map or pooled."""
    encoded = encode_for_match_map(model, batch, special_tokens)
    return pooled(encoded) if alignment == "pooled" else encoded


def pooled(encoded: Encoded) -> Encoded:
    """Return embeddings for the match map as images of one position and captions of one token: unit vectors."""
    texts, valid = pooled_texts(encoded.W, encoded.valid)
    return Encoded(pooled_images(encoded.V), texts, valid)


def encode_for_retrieval(model: GroundedModel, batch: CaptionBatch, special_tokens: bool) -> Encoded:
    """Return the vectors of a batch, which may be empty, as images of one position and captions of one token.

    Their match map then holds one number, the cosine of the two vectors.

    Args:
        special_tokens: whether the mean over a caption includes special tokens, such as [CLS] and [SEP].
    """
    if len(batch) == 0:
        empty = model.visual.empty()[:, :1]
        return Encoded(empty, empty, torch.zeros(0, 1, dtype=torch.bool))
    images = image_vectors(model, batch.images)
    texts = text_vectors(model, batch.tokens, batch.attention_mask, special_tokens, batch.queries)
    return Encoded(images[:, None], texts[:, None], torch.ones(len(batch), 1, dtype=torch.bool))


@torch.no_grad()
def image_keys(model: GroundedModel, images: Images) -> Keys:
    """Return the keys of the cross-modal attention at each position of each image: what the retrieval heads take."""
    return model.head(RelationalModule).attention.key(model.visual(images))


@torch.no_grad()
def text_queries(
    model: GroundedModel, tokens: Int[Tensor, "text token"], mask: Bool[Tensor, "text token"]
) -> Float[Tensor, "text token dim"]:
    """Return the queries of the cross-modal attention at each token of each text: what the retrieval heads take."""
    return model.head(RelationalModule).attention.query(model.language(tokens, mask))


def image_vectors(model: GroundedModel, images: Images | Keys) -> Float[Tensor, "image dim"]:
    """Return a unit vector for each image, in at least float32. Only the retrieval heads get a gradient.

    Args:
        images: pixels, feature maps, or keys (`image_keys`).
    """
    keys = images if images.dim() == 3 else image_keys(model, images)
    return at_least_float32(model.head(RetrievalHeads).images(keys))


def text_vectors(
    model: GroundedModel,
    tokens: Int[Tensor, "text token"],
    mask: Bool[Tensor, "text token"],
    special_tokens: bool,
    queries: Float[Tensor, "text token dim"] | None = None,
) -> Float[Tensor, "text dim"]:
    """Return a unit vector for each text, in at least float32. Only the retrieval heads get a gradient.

    Args:
        tokens: ids of word pieces.
        mask: True for the tokens of the text, False for padding.
        special_tokens: whether the mean over a text includes special tokens, such as [CLS] and [SEP].
        queries: those of the texts (`text_queries`), if they are known.
    """
    queries = text_queries(model, tokens, mask) if queries is None else queries
    counted = counted_tokens(mask, special_tokens, model.language.special_tokens)
    return at_least_float32(model.head(RetrievalHeads).texts(queries, counted))


def concatenate(encoded: list[Encoded]) -> Encoded:
    """Return the embeddings of several chunks as one; captions are padded to the longest."""
    V, W, valid, *learned = zip(*encoded, strict=True)
    rows = [None if parts[0] is None else torch.cat(parts) for parts in learned]
    return Encoded(torch.cat(V), _cat_padded(W), _cat_padded(valid), *rows)


def _cat_padded(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of several tensors; dimension 1 is padded to the longest."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([_pad(part, longest) for part in parts])


def _pad(part: Tensor, length: int) -> Tensor:
    missing = length - part.shape[1]
    return torch.cat([part, part.new_zeros(part.shape[0], missing, *part.shape[2:])], dim=1) if missing else part


def validate(
    encode: Callable[[CaptionBatch], Encoded],
    steps: Iterable[Step],
    training_loss: Callable[[list[Encoded]], tuple[Tensor, Scalars]],
    kind: Kind,
) -> Metrics:
    """Return the training loss, as a mean over samples, and recall@k among all validation images.

    The embeddings are kept on the host meanwhile, as those of a large validation set fill a GPU.

    Args:
        training_loss: the stage's `loss`. Negatives come from the step's batch, as in training.
        kind: similarity by which images and captions are ranked.
    """
    pool, losses, own_counts = [], [], []
    for step in steps:
        encoded = [encode(batch) for _, batch in step.chunks]
        losses.append(training_loss(encoded)[0])
        own_counts.append(sum(len(chunk.V) for chunk in encoded))
        pool += [chunk.on_host() for chunk in encoded]
    counts = [sum(of_ranks) for of_ranks in on_every_rank(*own_counts)]
    total = sum(loss * count for loss, count in zip(torch.stack(losses).tolist(), counts, strict=True))
    return {"loss": total / sum(counts), **pool_recalls(pool, kind, losses[0].device)}


def pool_recalls(pool: Sequence[Encoded], kind: Kind, device: torch.device) -> Metrics:
    """Return recall@k, mean and median rank of the images and captions of all ranks, each with its first caption.

    Args:
        pool: embeddings of this rank's samples, on the host.
        kind: similarity by which images and captions are ranked.
        device: where similarities are computed.
    """
    images, captions, valid = zip(*(part[:3] for part in pool), strict=True)
    return recalls(matched_ranks(images, captions, valid, kind, device))
