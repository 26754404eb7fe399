"""The loss of the grounding stage over the global batch: negatives come from every rank."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from groundray.loss.collectives import gather_rows, gather_words
from groundray.loss.match_map import Kind, normalised, similarity
from groundray.loss.nt_xent import two_way_nt_xent


def grounding_loss(
    V: Float[Tensor, "own_sample position width"],
    W: Float[Tensor, "own_sample token width"],
    valid: Bool[Tensor, "own_sample token"],
    temperature: float,
    kind: Kind = "dot",
) -> tuple[Float[Tensor, ""], Float[Tensor, "sample sample"]]:
    """The two-way NT-Xent of the global batch, and its similarities (image, caption), the same on every rank.

    Images stay where they are: words travel, each rank fills its images' rows of the similarity, and the rows travel.
    """
    V, W = normalised(V, W, kind)
    own_rows = similarity(V, gather_words(W), gather_words(valid))
    S = gather_rows(own_rows)
    return two_way_nt_xent(S, temperature), S
