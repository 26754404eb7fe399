"""The relation losses (Loss_rel + Loss_obj) against loops over triplets, and against all pairs of triplets at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from groundray.benchmarks.measure import Report, Row, machine
from groundray.benchmarks.published_losses import OURS, Contender, Problem, columns, compare
from groundray.loss.relation_loss import Scored, relation_loss

BASELINE = "loop over triplets"
ANNOTATED = 0.02  # share of predicates that a pair of objects is annotated with, beside the triplet's own
CAPTION = (
    "One loss and its gradient, float32, on the CPU. Memory: the peak of forward and backward beyond the scores and "
    "beyond their gradient. Error: of the loss, relative to groundray's."
)


def ours(one: Scored) -> Tensor:
    return relation_loss([one], 1.0, (1.0, 1.0, 0.0)).total


def all_pairs(one: Scored) -> Tensor:
    """Every triplet's negatives as a row of a matrix, triplets x triplets."""
    own = torch.eye(len(one.S), dtype=torch.bool)
    left_out = one.annotated[:, one.predicate].T & ~own
    pairs = one.S[:, one.predicate].T.masked_fill(left_out, -torch.inf)
    return F.cross_entropy(one.S, one.predicate) + F.cross_entropy(pairs, torch.arange(len(pairs)))


def triplet_by_triplet(one: Scored) -> Tensor:
    """A loop over triplets: the predicates of each are a vector, and so are its negatives."""
    losses = []
    for b, p in enumerate(one.predicate.tolist()):
        pairs = torch.cat([one.S[b, p].view(1), one.S[~one.annotated[:, p], p]])
        losses.append(one.S[b].logsumexp(0) + pairs.logsumexp(0) - 2 * one.S[b, p])
    return torch.stack(losses).mean()


def number_by_number(one: Scored) -> Tensor:
    """As the equations stand: a loop over triplets, in it one over predicates and one over negatives."""
    losses = []
    for b, p in enumerate(one.predicate.tolist()):
        own = predicates = pairs = torch.exp(one.S[b, p])
        for k in range(one.S.shape[1]):
            if k != p:
                predicates = predicates + torch.exp(one.S[b, k])
        for n in range(len(one.S)):
            if not one.annotated[n, p]:
                pairs = pairs + torch.exp(one.S[n, p])
        losses.append(-torch.log(own / predicates) - torch.log(own / pairs))
    return torch.stack(losses).mean()


CONTENDERS = {
    OURS: Contender(ours),
    "triplets x triplets": Contender(all_pairs),
    BASELINE: Contender(triplet_by_triplet),
    "loop over numbers": Contender(number_by_number),
}


def measure(
    triplets: Sequence[int], predicates: int, repeats: int, most_seconds: float, note: Callable[[str], None]
) -> Report:
    """The benchmark `relation`.

    Args:
        triplets: of a batch, a case each.
        most_seconds: no round of a case but the first starts when its rounds have taken so long.
        note: told what is measured next.

    Raises:
        Disagreement: a contender's loss is another one.
    """
    rows: list[Row] = []
    for count in triplets:
        note(f"relation: {count} triplets, {predicates} predicates")
        case = {"triplets": count, "predicates": predicates}
        problem, small = (random_problem(some, predicates) for some in (count, 8))
        rows += compare(case, CONTENDERS, problem, small, BASELINE, repeats, most_seconds)
    return Report("relation", CAPTION, columns(BASELINE), rows, machine())


def random_problem(triplets: int, predicates: int) -> Problem:
    """Random scores [triplets predicates] of annotated pairs; no objects to classify."""
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(triplets, predicates, generator=generator, requires_grad=True)
    predicate = torch.randint(0, predicates, (triplets,), generator=generator)
    annotated = torch.rand(triplets, predicates, generator=generator) < ANNOTATED
    annotated[torch.arange(triplets), predicate] = True
    return Problem((Scored(S, predicate, annotated, S.new_zeros(0, 1), predicate[:0], images=1),), (S,))
