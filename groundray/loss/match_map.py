"""The match map and the similarity of an image and a caption that it gives (paper, stage 2).

M[l, t] = V[l] . W[t]                          image position l, caption token t
S(image, caption) = mean_t max_l M[l, t]       over the caption's valid tokens
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["dot", "cosine"]

# Numbers of a tile of the match map: 64 MB in float32, so that a validation set of any size fits.
TILE = 16 * 2**20


def match_map(
    V: Float[Tensor, "position dim"], W: Float[Tensor, "token dim"], kind: Kind = "dot"
) -> Float[Tensor, "position token"]:
    """How well each position of an image matches each token of a caption."""
    V, W = normalised(V, W, kind)
    return V @ W.T


def similarity(
    V: Float[Tensor, "image position dim"],
    W: Float[Tensor, "caption token dim"],
    valid: Bool[Tensor, "caption token"],
    kind: Kind = "dot",
) -> Float[Tensor, "image caption"]:
    """The similarity of each image and each caption: the mean over valid tokens of the best position's match.

    A caption without a valid token has similarity 0 to every image, and no gradient.
    """
    V, W = normalised(V, W, kind)
    captions = max(1, TILE // max(1, V.shape[0] * V.shape[1] * W.shape[1]))
    tiles = [
        _tile(V, W[start : start + captions], valid[start : start + captions])
        for start in range(0, W.shape[0], captions)
    ]
    return torch.cat(tiles, dim=1) if tiles else V.new_zeros(V.shape[0], 0)


def normalised(V: Tensor, W: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Both embeddings, at length 1 for cosine."""
    return (F.normalize(V, dim=-1), F.normalize(W, dim=-1)) if kind == "cosine" else (V, W)


def _tile(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    best = torch.einsum("ipd,ctd->ictp", V, W).amax(dim=-1)
    counts = valid.sum(dim=1).clamp(min=1)
    return (best * valid).sum(dim=-1) / counts
