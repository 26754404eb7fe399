"""The relational module: phrases look at the image, and pairs of what they saw are scored for every predicate."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class CrossModalAttention(nn.Module):
    """Phrases attend to image positions: one visually grounded vector an object (paper, stage 3).

    Queries and keys have no bias, values have one; heads are concatenated, with no output projection, residual or norm.
    All three start as the identity: at first a phrase looks where its own embedding matches the image's.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads of the cross-modal attention cannot share a width of {width} evenly")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value):
            nn.init.eye_(projection.weight)
        nn.init.zeros_(self.value.bias)

    def forward(
        self,
        phrases: Float[Tensor, "object dim"],
        V: Float[Tensor, "image position dim"],
        image: Int[Tensor, " object"],
    ) -> Float[Tensor, "object dim"]:
        """What each phrase sees in its image, whose number `image` holds; objects of an image stand together."""
        if len(phrases) == 0:
            return self.value(phrases)
        place = place_in_image(image)
        queries = self.query(phrases)
        padded = queries.new_zeros(len(V), int(place.max()) + 1, queries.shape[1])
        padded = padded.index_put((image, place), queries)
        seen = F.scaled_dot_product_attention(self._split(padded), self._split(self.key(V)), self._split(self.value(V)))
        return seen.transpose(1, 2).flatten(2)[image, place]

    def _split(self, x: Float[Tensor, "image item dim"]) -> Float[Tensor, "image head item part"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class RelationalModule(nn.Module):
    """Cross-modal attention, the relation space with an operator a predicate, and the classifier of objects.

    Args:
        width: of both streams.
        predicates: how many are scored.
        classes: how many an object may be of.
        space: width of the relation space.
        hidden: width of the classifier.
    """

    def __init__(self, width: int, predicates: int, classes: int, heads: int = 8, space: int = 32, hidden: int = 256):
        super().__init__()
        self.attention = CrossModalAttention(width, heads)
        self.space = nn.Linear(width, space)
        self.operators = nn.Parameter(torch.randn(predicates, space, space))
        self.operator_dropout = nn.Dropout(0.1)
        self.classifier = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, classes)
        )

    def scores(
        self, r: Float[Tensor, "object space"], pairs: Int[Tensor, "triplet 2"]
    ) -> Float[Tensor, "triplet predicate"]:
        """S[t, k] = r_subject R_k r_object of each pair (subject, object) and every predicate k.

        Each operator is divided by its Frobenius norm, then dropout falls on its entries.
        """
        norms = self.operators.square().sum(dim=(1, 2), keepdim=True).sqrt()
        R = self.operator_dropout(self.operators / norms)
        outer = r[pairs[:, 0], :, None] * r[pairs[:, 1], None, :]  # so that all predicates are one matrix product
        return outer.flatten(1) @ R.flatten(1).T


def place_in_image(image: Int[Tensor, " object"]) -> Int[Tensor, " object"]:
    """The place of each object in its image, from 0; objects of an image stand together."""
    positions = torch.arange(len(image), device=image.device)
    starts = torch.ones_like(image, dtype=torch.bool)
    starts[1:] = image[1:] != image[:-1]
    return positions - torch.where(starts, positions, 0).cummax(0).values
