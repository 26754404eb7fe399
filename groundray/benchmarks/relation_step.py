"""The relation losses (Loss_rel + Loss_obj) against loops over triplets, and against one matrix of all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from groundray.benchmarks.measure import Report, Row, machine
from groundray.benchmarks.published_losses import OURS, Contender, Problem, columns, compare
from groundray.benchmarks.session import Case, Session
from groundray.loss.relation_loss import Scored, relation_loss

BASELINE = "loop over triplets"
ANNOTATED = 0.02  # fraction of predicates that a pair of objects is annotated with, besides the triplet's own
CAPTION = (
    "One loss and its gradient, float32, on the CPU. Memory: the peak of forward and backward beyond the scores and "
    "beyond their gradient. Error: of the loss, relative to groundray's."
)


def ours(scored: Scored) -> Tensor:
    return relation_loss([scored], 1.0, (1.0, 1.0, 0.0)).total


def all_pairs(scored: Scored) -> Tensor:
    """Compute the negatives of all triplets as rows of one matrix, triplets x triplets."""
    own = torch.eye(len(scored.S), dtype=torch.bool)
    left_out = scored.annotated[:, scored.predicate].T & ~own
    pairs = scored.S[:, scored.predicate].T.masked_fill(left_out, -torch.inf)
    return F.cross_entropy(scored.S, scored.predicate) + F.cross_entropy(pairs, torch.arange(len(pairs)))


def triplet_by_triplet(scored: Scored) -> Tensor:
    """Loop over triplets; the predicates and the negatives of each are vectors."""
    losses = []
    for b, p in enumerate(scored.predicate.tolist()):
        pairs = torch.cat([scored.S[b, p].view(1), scored.S[~scored.annotated[:, p], p]])
        losses.append(scored.S[b].logsumexp(0) + pairs.logsumexp(0) - 2 * scored.S[b, p])
    return torch.stack(losses).mean()


def number_by_number(scored: Scored) -> Tensor:
    """Compute the equations literally: loops over triplets, and within them over predicates and negatives."""
    losses = []
    for b, p in enumerate(scored.predicate.tolist()):
        own = predicates = pairs = torch.exp(scored.S[b, p])
        for k in range(scored.S.shape[1]):
            if k != p:
                predicates = predicates + torch.exp(scored.S[b, k])
        for n in range(len(scored.S)):
            if not scored.annotated[n, p]:
                pairs = pairs + torch.exp(scored.S[n, p])
        losses.append(-torch.log(own / predicates) - torch.log(own / pairs))
    return torch.stack(losses).mean()


CONTENDERS = {
    OURS: Contender(ours),
    "triplets x triplets": Contender(all_pairs),
    BASELINE: Contender(triplet_by_triplet),
    "loop over numbers": Contender(number_by_number),
}


def measure(triplets: Sequence[int], predicates: int, session: Session) -> Report:
    """Run the benchmark `relation`.

    Args:
        triplets: numbers of triplets in a batch, one case each.
        session: decides which rows there is time for.

    Raises:
        Disagreement: the loss of a contender differs.
    """
    rows: list[Row] = []
    titles = {count: f"{count} triplets, {predicates} predicates" for count in triplets}
    session.plan([Case(title, tuple(CONTENDERS), count**2) for count, title in titles.items()])
    with session.until_stopped():
        for count, title in titles.items():
            case = {"triplets": count, "predicates": predicates}
            problem, small = (random_problem(size, predicates) for size in (count, 8))
            rows += compare(session.begin(title), case, CONTENDERS, problem, small, BASELINE)
    return Report("relation", CAPTION, columns(BASELINE), rows, machine(), ("triplets",))


def random_problem(triplets: int, predicates: int) -> Problem:
    """Return random scores [triplets predicates] of annotated pairs, without objects to classify."""
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(triplets, predicates, generator=generator, requires_grad=True)
    predicate = torch.randint(0, predicates, (triplets,), generator=generator)
    annotated = torch.rand(triplets, predicates, generator=generator) < ANNOTATED
    annotated[torch.arange(triplets), predicate] = True
    return Problem((Scored(S, predicate, annotated, S.new_zeros(0, 1), predicate[:0], images=1),), (S,))
