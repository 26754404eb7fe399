"""The loss of the grounding stage over the global batch: negatives come from every rank."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from groundray.loss.collectives import gather_rows, gather_words
from groundray.loss.match_map import Kind, normalised, similarity
from groundray.loss.nt_xent import two_way_nt_xent


def grounding_loss(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    temperature: float,
    kind: Kind = "dot",
    block: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "sample sample"]]:
    """The two-way NT-Xent of the global batch, and its similarities (image, caption), the same on every rank.

    Images stay where they are: words travel, each rank fills its images' rows of the similarity, and the rows travel.

    Args:
        block: samples of a chunk. The similarity is then computed chunk by chunk, in products of the same shape on
            any number of ranks, which makes it the same to the last bit.
    """
    V, W = normalised(V, W, kind)
    words, valid = gather_words(W), gather_words(valid)
    size = block or max(1, len(V), len(words))
    rows = [_row(images, words, valid, size) for images in V.split(size)]
    S = gather_rows(torch.cat(rows))
    return two_way_nt_xent(S, temperature), S


def _row(V: Tensor, W: Tensor, valid: Tensor, size: int) -> Tensor:
    """The similarity of some images and all captions, `size` captions at a time."""
    blocks = zip(W.split(size), valid.split(size), strict=True)
    return torch.cat([similarity(V, words, mask) for words, mask in blocks], dim=1)
