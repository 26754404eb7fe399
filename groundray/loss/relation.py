"""The losses of the relational stage (paper, stage 3), of the scores of all triplets of the global batch.

S[b, k] = r_subject(b) R_k r_object(b)         triplet b, predicate k

Loss_rel asks of each triplet which predicate it has; Loss_obj of each triplet's predicate which pair of objects has
it, among all annotated pairs of the batch. Both take a row a triplet and never look at two triplets together, so time
and memory are O(triplets x predicates).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def predicate_loss(
    S: Float[Tensor, "triplet predicate"], predicate: Int[Tensor, " triplet"], temperature: float
) -> Float[Tensor, " triplet"]:
    """Loss_rel of each triplet:  -log exp(S[b, p]/tau) / sum_k exp(S[b, k]/tau)."""
    return F.cross_entropy(S / temperature, predicate, reduction="none")


def pair_loss(
    S: Float[Tensor, "triplet predicate"],
    predicate: Int[Tensor, " triplet"],
    annotated: Bool[Tensor, "triplet predicate"],
    temperature: float,
) -> Float[Tensor, " triplet"]:
    """Loss_obj of each triplet:  -log exp(S[b, p]/tau) / (exp(S[b, p]/tau) + sum over negatives n of exp(S[n, p]/tau)).

    The negatives of predicate p are the triplets of the batch whose pair of objects is not annotated with p. Where
    there is none, the loss is 0.

    Args:
        annotated: every predicate that the triplet's pair of objects is annotated with, its own among them.
    """
    logits = S / temperature
    negatives = _log_sum_exp(logits.masked_fill(annotated, -torch.inf))
    own = logits.gather(1, predicate[:, None]).squeeze(1)
    return torch.logaddexp(own, negatives[predicate]) - own


def _log_sum_exp(logits: Float[Tensor, "triplet predicate"]) -> Float[Tensor, " predicate"]:
    """log sum exp over triplets; of a column without a finite entry it is -inf, with gradient 0 and not NaN."""
    if len(logits) == 0:
        return logits.new_full((logits.shape[1],), -torch.inf)
    highest = logits.detach().amax(dim=0)
    finite = highest.isfinite()
    shift = torch.where(finite, highest, 0.0)
    total = (logits - shift).exp().sum(dim=0)
    return torch.where(finite, torch.where(finite, total, 1.0).log() + shift, -torch.inf)
