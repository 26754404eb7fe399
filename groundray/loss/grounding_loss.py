"""The loss of the grounding stage over the global batch: negatives come from every rank.

Images stay where they are. Words travel: each rank compares all captions with its own images, which fills the rows of
S that are its own. What is found of an image's caption lies in one row; what is found of a caption's image lies in a
column, so of each column ranks exchange a log-sum-exp a chunk, and never S itself.
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
    """The two-way NT-Xent (`two_way_nt_xent`) of the global batch, the same on every rank. An empty batch has loss 0.

    With logits x = S / temperature, the loss of sample i is  log sum_j exp(x_ij - x_ii) + log sum_j exp(x_ji - x_ii).

    Args:
        block: samples of a chunk. What is multiplied and added together is then the same on any number of ranks, which
            makes the loss the same to the last bit.
    """
    S = _own_rows(V, W, valid, kind, block)
    own, samples = S.shape
    if samples == 0:
        return S.sum()
    first, size = row_offset(S), block or max(1, own)
    x = S / temperature
    matched = x.diagonal(first)[:own]
    rows, everyones = x - matched[:, None], sum_gradient_over_ranks(gather_rows(matched))
    images = sum_over_chunks([part.logsumexp(dim=1).sum() for part in rows.split(size)])
    captions = gather_rows(torch.stack([(part - everyones).logsumexp(dim=0) for part in x.split(size)]))
    return (images + captions.logsumexp(dim=0).sum()) / samples


def global_similarity(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    kind: Kind = "dot",
) -> Float[Tensor, "sample sample"]:
    """The similarities (image, caption) of all ranks' samples, on every rank: for recall, the loss never needs it."""
    return gather_rows(_own_rows(V, W, valid, kind))


def _own_rows(V: Tensor, W: Tensor, valid: Tensor, kind: Kind, block: int | None = None) -> Tensor:
    """The similarities of a rank's own images and all captions."""
    V, W = normalised(V, W, kind)
    return similarity_to_words(V, *gather_words(W, valid), block)
