"""The relation losses against their naive twins, in value and gradient."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from torch import Tensor

from groundray.loss.relation import pair_loss, predicate_loss

PREDICATES = 5


def triplets(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores in float64 with gradient, predicates, and what else each triplet's pair is annotated with."""
    generator = torch.Generator().manual_seed(count)
    S = torch.randn(count, PREDICATES, dtype=torch.float64, generator=generator, requires_grad=True)
    predicate = torch.randint(0, PREDICATES, (count,), generator=generator)
    annotated = torch.rand(count, PREDICATES, generator=generator) < 0.2
    annotated[torch.arange(count), predicate] = True
    return S, predicate, annotated


@pytest.mark.parametrize("count", [1, 2, 7, 23])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_both_losses_are_their_twins(count: int, temperature: float) -> None:
    S, predicate, annotated = triplets(count)
    ours = (predicate_loss(S, predicate, temperature), pair_loss(S, predicate, annotated, temperature))
    twins = (
        reference.predicate_loss(S, predicate, temperature),
        reference.pair_loss(S, predicate, annotated, temperature),
    )
    for one, twin in zip(ours, twins, strict=True):
        torch.testing.assert_close(one, twin)
        weights = torch.arange(1.0, count + 1, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((one * weights).sum(), S, retain_graph=True)
        (expected,) = torch.autograd.grad((twin * weights).sum(), S, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


def test_a_written_out_pair_loss() -> None:
    S = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    # of predicate 0, the second triplet's pair is the only negative; predicate 1 has none, since both are annotated
    annotated = torch.tensor([[True, True], [False, True]])
    found = pair_loss(S, torch.tensor([0, 1]), annotated, 1.0)
    assert found[0].item() == pytest.approx(math.log(1 + math.e))
    assert found[1].item() == 0.0


def test_no_triplet_is_no_loss_and_no_nan() -> None:
    S = torch.zeros(0, PREDICATES, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    for loss in (predicate_loss(S, none, 1.0), pair_loss(S, none, S.bool(), 1.0)):
        assert loss.shape == (0,)
        loss.sum().backward()
    assert S.grad is not None
    assert S.grad.shape == (0, PREDICATES)


def test_scores_far_apart_stay_finite() -> None:
    S = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    predicate = torch.tensor([1, 0])
    annotated = torch.nn.functional.one_hot(predicate, 2).bool()
    loss = predicate_loss(S, predicate, 0.01).sum() + pair_loss(S, predicate, annotated, 0.01).sum()
    loss.backward()
    assert loss.isfinite()
    assert S.grad is not None
    assert S.grad.isfinite().all()
