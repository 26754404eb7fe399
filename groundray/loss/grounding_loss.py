"""Two-way NT-Xent over the global batch, with negatives of all ranks: a loss of the grounding and retrieval stages.

Images stay on their rank, words are sent: each rank compares all captions with its own images and so computes the
rows of the similarity matrix S of its own images. Image-to-text terms need one row each. Text-to-image terms need a
column, so ranks exchange one log-sum-exp for each chunk and column, and never S.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from groundray.distributed import (
    gather_rows,
    gather_words,
    on_every_rank,
    rank,
    sum_gradient_over_ranks,
    sum_over_chunks,
)
from groundray.loss.match_map import Kind, normalised, similarity_to_words


def grounding_loss(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    temperature: float | Float[Tensor, " own_sample"],
    kind: Kind = "dot",
    chunks: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """Return the two-way NT-Xent of the global batch (paper, stage 2), the same on every rank; 0 for an empty batch.

    It is the mean over samples i of

        -log softmax_j(x_ij)[i] - log softmax_j(x_ji)[i]  =  log sum_j exp(x_ij - x_ii) + log sum_j exp(x_ji - x_ii)

    with logits x = S / temperature. The right-hand form is computed: it loses no digits where x_ii is large.

    Args:
        V: embeddings of this rank's images.
        W: embeddings of this rank's captions, padded.
        valid: True for the tokens that the similarity averages over.
        temperature: positive; a learned one as the same number for each of this rank's samples, whose gradients are the
            parts of its gradient.
        kind: similarity of a position and a token.
        chunks: number of samples of each of this rank's chunks, of which some may be empty; None for a single chunk.
            The same chunks give a loss of the same bits on any number of ranks.
    """
    sizes = list(chunks) if chunks else [len(V)]
    S = _own_rows(V, W, valid, kind, sizes)
    own, samples = S.shape
    if samples == 0:
        return S.sum()
    samples_of, chunks_of = on_every_rank(own, len(sizes))
    x = S / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
    matched = x.diagonal(sum(samples_of[: rank()]))[:own]
    rows, all_matched = x - matched[:, None], sum_gradient_over_ranks(gather_rows(matched, samples_of))
    images = sum_over_chunks([part.logsumexp(dim=1).sum() for part in rows.split(sizes)], chunks_of)
    captions = gather_rows(torch.stack([(part - all_matched).logsumexp(dim=0) for part in x.split(sizes)]), chunks_of)
    return (images + captions.logsumexp(dim=0).sum()) / samples


def global_similarity(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    kind: Kind = "dot",
) -> Float[Tensor, "sample sample"]:
    """Return the similarity of each image (row) and each caption (column) of all ranks, on every rank.

    For losses that compare all pairs otherwise than NT-Xent. Each rank computes the same loss from it.
    """
    return gather_rows(_own_rows(V, W, valid, kind, [len(V)]))


def _own_rows(V: Tensor, W: Tensor, valid: Tensor, kind: Kind, chunks: Sequence[int]) -> Tensor:
    """Return the similarities of a rank's own images and the captions of all ranks, chunks of one size at a time."""
    V = normalised(V, kind)
    words, valid = gather_words(normalised(W, kind), valid)
    runs = [(size, size * len(list(equal))) for size, equal in groupby(chunks)]
    if len(runs) == 1:
        return similarity_to_words(V, words, valid, chunks[0])
    parts = V.split([images for _, images in runs])
    return torch.cat(
        [similarity_to_words(part, words, valid, size) for (size, _), part in zip(runs, parts, strict=True)]
    )
