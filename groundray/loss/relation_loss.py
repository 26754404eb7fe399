"""The losses of the relational stage (paper, stage 3) over the scores of all triplets of the global batch.

S[b, k] = r_subject(b) R_k r_object(b)         triplet b, predicate k

Loss_rel classifies each triplet's predicate. Loss_obj contrasts each triplet's pair of objects with all other pairs of
the batch, by their score for its predicate. Neither compares triplets two by two, so time and memory are
O(triplets x predicates), and ranks exchange a few sums for each predicate, never their triplets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from groundray.device_copy import to_device
from groundray.distributed import gather_rows, on_every_rank, sum_gradient_over_ranks, sum_over_chunks

Reduction = Literal["triplets", "images"]


class Scored(NamedTuple):
    """Scores of a chunk's triplets and objects, and their annotations.

    Attributes:
        S: score of every predicate for each triplet's pair of objects.
        predicate: index of each triplet's predicate.
        annotated: True for every predicate of the triplet's pair of objects, in any triplet.
        logits: logits of each object's class.
        classes: index of each object's class.
        images: number of images.
    """

    S: Float[Tensor, "triplet predicate"]
    predicate: Int[Tensor, " triplet"]
    annotated: Bool[Tensor, "triplet predicate"]
    logits: Float[Tensor, "object class"]
    classes: Int[Tensor, " object"]
    images: int


class RelationLoss(NamedTuple):
    """The weighted loss and its parts, which have no gradient.

    Attributes:
        total: weighted sum of the parts.
        predicate: Loss_rel.
        pair: Loss_obj.
        object: cross-entropy of the objects' classes.
    """

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
    """Return the losses of the global batch, the same on every rank; 0 for a batch without triplets or objects.

    Args:
        chunks: the rank's own chunks.
        temperature: positive.
        weights: weights of Loss_rel, Loss_obj and the objects' cross-entropy.
        reduction: "triplets" takes the mean over triplets (over objects for their classes); "images" divides the sum
            by the number of images, as the authors' code does.
    """
    own = [log_sum_exp((chunk.S / temperature).masked_fill(chunk.annotated, -torch.inf)) for chunk in chunks]
    (chunks_of,) = on_every_rank(len(chunks))
    negatives = sum_gradient_over_ranks(log_sum_exp(gather_rows(torch.stack(own), chunks_of)))
    parts = []
    for chunk in chunks:
        sums = (
            predicate_loss(chunk.S, chunk.predicate, temperature).sum(),
            pair_loss(chunk.S, chunk.predicate, negatives, temperature).sum(),
            F.cross_entropy(chunk.logits, chunk.classes, reduction="sum"),
        )
        counts = torch.tensor([len(chunk.S), len(chunk.classes), chunk.images], dtype=chunk.S.dtype)
        parts.append(torch.cat([torch.stack(sums), to_device(counts, chunk.S.device)]))
    predicate, pair, object_, triplets, objects, images = sum_over_chunks(parts, chunks_of)
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
    """Return Loss_rel of each triplet:  -log exp(S[b, p]/tau) / sum_k exp(S[b, k]/tau)."""
    return F.cross_entropy(S / temperature, predicate, reduction="none")


def pair_loss(
    S: Float[Tensor, "triplet predicate"],
    predicate: Int[Tensor, " triplet"],
    negatives: Float[Tensor, " predicate"],
    temperature: float,
) -> Float[Tensor, " triplet"]:
    """Return Loss_obj of each triplet b with predicate p:

        -log exp(S[b, p]/tau) / (exp(S[b, p]/tau) + sum over negatives n of exp(S[n, p]/tau))

    The negatives of predicate p are the triplets of the batch whose pair of objects is not annotated with p. Without
    negatives the loss is 0.

    Args:
        negatives: for each predicate, log of the sum over its negatives of exp(S/tau); -inf without negatives.
    """
    own = (S / temperature).gather(1, predicate[:, None]).squeeze(1)
    return torch.logaddexp(own, negatives[predicate]) - own


def log_sum_exp(logits: Float[Tensor, "row predicate"]) -> Float[Tensor, " predicate"]:
    """Return log sum exp over rows. A column without a finite entry gives -inf, with gradient 0 instead of NaN."""
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
    """Return True for every predicate of each triplet's pair (subject, object), in any of the triplets.

    Pairs are numbered in sorted order. `torch.unique` does so too, but makes the host wait for their number.
    """
    ordered, order = (pairs[:, 0] * 2**32 + pairs[:, 1]).sort()
    number = torch.zeros_like(ordered)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(dim=0)
    pair = torch.empty_like(order).index_copy(0, order, number)
    annotated = torch.zeros(len(pairs), predicates, dtype=torch.bool, device=pairs.device)
    return annotated.index_put((pair, predicate), annotated.new_ones(())).index_select(0, pair)
