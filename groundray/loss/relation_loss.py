"""The losses of the relational stage (paper, stage 3), of the scores of all triplets of the global batch.

S[b, k] = r_subject(b) R_k r_object(b)         triplet b, predicate k

Loss_rel asks of each triplet which predicate it has; Loss_obj of each triplet's predicate which pair of objects has
it, among all annotated pairs of the batch. Both take a row a triplet and never look at two triplets together, so time
and memory are O(triplets x predicates); and ranks exchange a handful of sums a predicate, never their triplets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from groundray.distributed import gather_rows, sum_gradient_over_ranks, sum_over_chunks

Reduction = Literal["triplets", "images"]


class Scored(NamedTuple):
    """What the model says of a chunk's triplets and objects, and what is true of them.

    Attributes:
        S: the score of every predicate, for each triplet's pair of objects.
        predicate: of each triplet.
        annotated: every predicate that the triplet's pair of objects is annotated with, its own among them.
        logits, classes: of each object.
        images: how many there are.
    """

    S: Float[Tensor, "triplet predicate"]
    predicate: Int[Tensor, " triplet"]
    annotated: Bool[Tensor, "triplet predicate"]
    logits: Float[Tensor, "object class"]
    classes: Int[Tensor, " object"]
    images: int


class RelationLoss(NamedTuple):
    """The weighted sum, and its parts: Loss_rel, Loss_obj, and the cross-entropy of the objects' classes."""

    total: Float[Tensor, ""]
    predicate: Float[Tensor, ""]
    pair: Float[Tensor, ""]
    object: Float[Tensor, ""]


def relation_loss(
    chunks: Sequence[Scored],
    temperature: float,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    reduction: Reduction = "triplets",
) -> RelationLoss:
    """The losses of the global batch, the same on every rank, from a rank's own chunks.

    Args:
        weights: of Loss_rel, Loss_obj and the objects' cross-entropy.
        reduction: `triplets` takes the mean over triplets (over objects for their classes), `images` the sum over the
            number of images, as the authors' code does. Of a batch without a triplet or object it is 0.
    """
    own = [log_sum_exp((one.S / temperature).masked_fill(one.annotated, -torch.inf)) for one in chunks]
    negatives = sum_gradient_over_ranks(log_sum_exp(gather_rows(torch.stack(own))))
    parts = []
    for one in chunks:
        sums = (
            predicate_loss(one.S, one.predicate, temperature).sum(),
            pair_loss(one.S, one.predicate, negatives, temperature).sum(),
            F.cross_entropy(one.logits, one.classes, reduction="sum"),
        )
        counts = one.S.new_tensor([len(one.S), len(one.classes), one.images])
        parts.append(torch.cat([torch.stack(sums), counts]))
    predicate, pair, object_, triplets, objects, images = sum_over_chunks(parts)
    if reduction == "images":
        triplets = objects = images
    predicate, pair = predicate / triplets.clamp(min=1), pair / triplets.clamp(min=1)
    object_ = object_ / objects.clamp(min=1)
    return RelationLoss(
        weights[0] * predicate + weights[1] * pair + weights[2] * object_,
        predicate.detach(),
        pair.detach(),
        object_.detach(),
    )


def predicate_loss(
    S: Float[Tensor, "triplet predicate"], predicate: Int[Tensor, " triplet"], temperature: float
) -> Float[Tensor, " triplet"]:
    """Loss_rel of each triplet:  -log exp(S[b, p]/tau) / sum_k exp(S[b, k]/tau)."""
    return F.cross_entropy(S / temperature, predicate, reduction="none")


def pair_loss(
    S: Float[Tensor, "triplet predicate"],
    predicate: Int[Tensor, " triplet"],
    negatives: Float[Tensor, " predicate"],
    temperature: float,
) -> Float[Tensor, " triplet"]:
    """Loss_obj of each triplet:  -log exp(S[b, p]/tau) / (exp(S[b, p]/tau) + sum over negatives n of exp(S[n, p]/tau)).

    The negatives of predicate p are the triplets of the batch whose pair of objects is not annotated with p. Where
    there is none, the loss is 0.

    Args:
        negatives: log of the sum over each predicate's negatives of exp(S/tau); -inf where there is none.
    """
    own = (S / temperature).gather(1, predicate[:, None]).squeeze(1)
    return torch.logaddexp(own, negatives[predicate]) - own


def log_sum_exp(logits: Float[Tensor, "row predicate"]) -> Float[Tensor, " predicate"]:
    """log sum exp over rows; of a column without a finite entry it is -inf, with gradient 0 and not NaN."""
    if len(logits) == 0:
        return logits.sum(dim=0) - torch.inf
    highest = logits.detach().amax(dim=0)
    finite = highest.isfinite()
    shift = torch.where(finite, highest, 0.0)
    total = (logits - shift).exp().sum(dim=0)
    return torch.where(finite, torch.where(finite, total, 1.0).log() + shift, -torch.inf)


def annotated_with(
    pairs: Int[Tensor, "triplet 2"], predicate: Int[Tensor, " triplet"], predicates: int
) -> Bool[Tensor, "triplet predicate"]:
    """Every predicate that each triplet's pair (subject, object) is annotated with, in any triplet."""
    _, pair = torch.unique(pairs, dim=0, return_inverse=True)
    found = torch.zeros(len(pairs), predicates, dtype=torch.bool, device=pairs.device)
    found[pair, predicate] = True
    return found[pair]
