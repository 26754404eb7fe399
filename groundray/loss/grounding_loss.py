"""The loss of the grounding and retrieval stages: two-way NT-Xent over the global batch, with negatives of all ranks.

Images stay on their rank, words are sent: each rank compares all captions with its own images and so computes the
rows of the similarity matrix S of its own images. Image-to-text terms need one row each. Text-to-image terms need a
column, so ranks exchange one log-sum-exp for each chunk and column, and never S.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from groundray.distributed import gather_rows, gather_words, row_offset, sum_gradient_over_ranks, sum_over_chunks
from groundray.loss.match_map import Kind, normalised, similarity_to_words


def grounding_loss(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    temperature: float,
    kind: Kind = "dot",
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Return the two-way NT-Xent of the global batch (paper, stage 2), the same on every rank; 0 for an empty batch.

    It is the mean over samples i of

        -log softmax_j(x_ij)[i] - log softmax_j(x_ji)[i]  =  log sum_j exp(x_ij - x_ii) + log sum_j exp(x_ji - x_ii)

    with logits x = S / temperature. The right-hand form is computed: it loses no digits where x_ii is large.

    Args:
        V: embeddings of this rank's images.
        W: embeddings of this rank's captions, padded.
        valid: True for the tokens that the similarity averages over.
        temperature: positive.
        kind: similarity of a position and a token.
        block: samples of a chunk. If given, and each rank holds whole chunks, the loss has the same bits on any number
            of ranks.
    """
    S = _own_rows(V, W, valid, kind, block)
    own, samples = S.shape
    if samples == 0:
        return S.sum()
    first, size = row_offset(S), block or max(1, own)
    x = S / temperature
    matched = x.diagonal(first)[:own]
    rows, all_matched = x - matched[:, None], sum_gradient_over_ranks(gather_rows(matched))
    images = sum_over_chunks([part.logsumexp(dim=1).sum() for part in rows.split(size)])
    captions = gather_rows(torch.stack([(part - all_matched).logsumexp(dim=0) for part in x.split(size)]))
    return (images + captions.logsumexp(dim=0).sum()) / samples


def global_similarity(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    kind: Kind = "dot",
) -> Float[Tensor, "sample sample"]:
    """Return the similarity of each image (row) and each caption (column) of all ranks, on every rank, for recall@k."""
    return gather_rows(_own_rows(V, W, valid, kind))


def _own_rows(V: Tensor, W: Tensor, valid: Tensor, kind: Kind, block: int | None = None) -> Tensor:
    """Return the similarities of a rank's own images and the captions of all ranks."""
    V, W = normalised(V, W, kind)
    return similarity_to_words(V, *gather_words(W, valid), block)
