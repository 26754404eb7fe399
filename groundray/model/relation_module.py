"""The relational module: phrases attend to their image, and pairs of objects are scored for every predicate."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from groundray.device_copy import to_device
from groundray.model.initialization import Initialization, OperatorInitialization


class CrossModalAttention(nn.Module):
    """Attention of phrases to image positions: one visually grounded vector for each object (paper, stage 3).

    Queries and keys have no bias, values have one. Heads are concatenated, without output projection, residual or norm.

    Args:
        initialization: with `identity`, a phrase attends at first where its embedding matches the image's.
    """

    def __init__(self, width: int, heads: int, initialization: Initialization = "identity"):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"model.relational.attention_heads: expected a number that divides the width {width}, got {heads}"
            )
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        if initialization == "identity":
            for projection in (self.query, self.key, self.value):
                nn.init.eye_(projection.weight)
            nn.init.zeros_(self.value.bias)

    def forward(
        self,
        phrases: Float[Tensor, "object dim"],
        V: Float[Tensor, "image position dim"],
        image: Int[Tensor, " object"],
    ) -> Float[Tensor, "object dim"]:
        """Return a vector for each object.

        Args:
            phrases: embedding of each object's phrase.
            V: embeddings of the image positions.
            image: index of each object's image. Objects of an image are adjacent. Read on the host: an index on a GPU
                makes it wait.
        """
        if len(phrases) == 0:
            return self.value(phrases)
        image = image.cpu()
        index = index_in_image(image)
        most = int(index.max()) + 1
        image, index = to_device(torch.stack([image, index]), phrases.device)
        queries = self.query(phrases)
        padded = queries.new_zeros(len(V), most, queries.shape[1])
        padded = padded.index_put((image, index), queries)
        attended = F.scaled_dot_product_attention(
            self._split(padded), self._split(self.key(V)), self._split(self.value(V))
        )
        return attended.transpose(1, 2).flatten(2)[image, index]

    def _split(self, x: Float[Tensor, "image item dim"]) -> Float[Tensor, "image head item part"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class RelationalModule(nn.Module):
    """Cross-modal attention, a relation space with one operator for each predicate, and a classifier of objects.

    Args:
        width: dimension of the streams' embeddings.
        predicates: number of predicates.
        classes: number of object classes.
        heads: number of attention heads; divides `width`.
        space: dimension of the relation space.
        hidden: width of the classifier's hidden layer.
        initialization: of the attention.
        operators: initialization of the operators. `xavier` is that of a (predicates, space, space) weight, whose
            standard deviation is sqrt(2 / (space^2 + predicates space)).
    """

    def __init__(
        self,
        width: int,
        predicates: int,
        classes: int,
        heads: int = 8,
        space: int = 32,
        hidden: int = 256,
        initialization: Initialization = "identity",
        operators: OperatorInitialization = "normal",
    ):
        super().__init__()
        self.attention = CrossModalAttention(width, heads, initialization)
        self.space = nn.Linear(width, space)
        self.operators = nn.Parameter(torch.randn(predicates, space, space))
        if operators == "xavier":
            nn.init.xavier_uniform_(self.operators)
        self.operator_dropout = nn.Dropout(0.1)
        self.classifier = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, classes)
        )

    def scores(
        self, r: Float[Tensor, "object space"], pairs: Int[Tensor, "triplet 2"]
    ) -> Float[Tensor, "triplet predicate"]:
        """Return S[t, k] = r_subject R_k r_object of each triplet t and every predicate k.

        Each operator is divided by its Frobenius norm, then dropout is applied to its entries.

        Args:
            r: vectors of the objects in the relation space.
            pairs: indices of each triplet's subject and object.
        """
        norms = self.operators.square().sum(dim=(1, 2), keepdim=True).sqrt()
        R = self.operator_dropout(self.operators / norms)
        outer = r[pairs[:, 0], :, None] * r[pairs[:, 1], None, :]  # one matrix product for all predicates
        return outer.flatten(1) @ R.flatten(1).T


def index_in_image(image: Int[Tensor, " object"]) -> Int[Tensor, " object"]:
    """Return the index of each object among those of its image, from 0. Objects of an image are adjacent."""
    positions = torch.arange(len(image), device=image.device)
    starts = torch.ones_like(image, dtype=torch.bool)
    starts[1:] = image[1:] != image[:-1]
    return positions - torch.where(starts, positions, 0).cummax(0).values
