"""The relation losses against their naive twins, in value and gradient, on one process and on two."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from groundray.distributed import barrier, sum_over_ranks
from groundray.loss.relation_loss import Scored, annotated_with, log_sum_exp, pair_loss, predicate_loss, relation_loss

PREDICATES, CLASSES = 5, 4


def scored(triplets: int, objects: int = 0, images: int = 1, seed: int = 0) -> Scored:
    """Return a chunk with random scores in float64."""
    generator = torch.Generator().manual_seed(seed)
    S = torch.randn(triplets, PREDICATES, dtype=torch.float64, generator=generator, requires_grad=True)
    predicate = torch.randint(0, PREDICATES, (triplets,), generator=generator)
    annotated = torch.rand(triplets, PREDICATES, generator=generator) < 0.2
    annotated[torch.arange(triplets), predicate] = True
    logits = torch.randn(objects, CLASSES, dtype=torch.float64, generator=generator, requires_grad=True)
    classes = torch.randint(0, CLASSES, (objects,), generator=generator)
    return Scored(S, predicate, annotated, logits, classes, images)


def negatives(chunk: Scored, temperature: float) -> Tensor:
    return log_sum_exp((chunk.S / temperature).masked_fill(chunk.annotated, -torch.inf))


@pytest.mark.parametrize("count", [1, 2, 7, 23])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_both_losses_equal_their_naive_twins(count: int, temperature: float) -> None:
    one = scored(count, seed=count)
    ours = (
        predicate_loss(one.S, one.predicate, temperature),
        pair_loss(one.S, one.predicate, negatives(one, temperature), temperature),
    )
    twins = (
        reference.predicate_loss(one.S, one.predicate, temperature),
        reference.pair_loss(one.S, one.predicate, one.annotated, temperature),
    )
    for loss, twin in zip(ours, twins, strict=True):
        torch.testing.assert_close(loss, twin)
        weights = torch.arange(1.0, count + 1, dtype=torch.float64)
        (gradient,) = torch.autograd.grad((loss * weights).sum(), one.S, retain_graph=True)
        (expected,) = torch.autograd.grad((twin * weights).sum(), one.S, retain_graph=True)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("reduction", ["triplets", "images"])
def test_loss_of_a_batch_in_chunks_equals_its_naive_twin(reduction: Any) -> None:
    chunks = [scored(4, 3, 2, seed=1), scored(0, 0, 1, seed=2), scored(6, 5, 3, seed=3)]
    weights = (1.0, 0.5, 2.0)
    ours = relation_loss(chunks, 0.3, weights, reduction)
    twin = reference.relation_loss(chunks, 0.3, weights, reduction)
    torch.testing.assert_close(ours.total, twin)
    torch.testing.assert_close(
        ours.total, weights[0] * ours.predicate + weights[1] * ours.pair + weights[2] * ours.object
    )
    sources = [tensor for one in chunks for tensor in (one.S, one.logits)]
    found = torch.autograd.grad(ours.total, sources)
    for gradient, expected in zip(found, torch.autograd.grad(twin, sources, allow_unused=True), strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if expected is None else expected)


def test_pair_loss_of_a_small_example() -> None:
    S = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    # the second triplet is the only negative of predicate 0; predicate 1 has none, as both pairs are annotated with it
    annotated = torch.tensor([[True, True], [False, True]])
    losses = pair_loss(S, torch.tensor([0, 1]), log_sum_exp(S.masked_fill(annotated, -torch.inf)), 1.0)
    assert losses[0].item() == pytest.approx(math.log(1 + math.e))
    assert losses[1].item() == 0.0


def test_annotated_holds_all_predicates_of_a_pair() -> None:
    pairs = torch.tensor([[0, 1], [1, 0], [0, 1], [2, 0]])
    assert annotated_with(pairs, torch.tensor([0, 1, 2, 0]), 3).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
        [True, False, False],
    ]
    assert annotated_with(pairs[:0], torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)


def test_annotated_equals_its_naive_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(0, 9, (200, 2), generator=generator)
    pairs[::50] *= 10**6  # indices of a large batch
    predicate = torch.randint(0, PREDICATES, (200,), generator=generator)
    expected = torch.zeros(200, PREDICATES, dtype=torch.bool)
    for row, pair in enumerate(pairs.tolist()):
        for other, known in zip(pairs.tolist(), predicate.tolist(), strict=True):
            expected[row, known] |= other == pair
    assert torch.equal(annotated_with(pairs, predicate, PREDICATES), expected)


@pytest.mark.parametrize("reduction", ["triplets", "images"])
def test_batch_without_triplets_and_objects_has_loss_zero(reduction: Any) -> None:
    chunks = [scored(0, 0, images) for images in (0, 2)]
    loss = relation_loss(chunks, 1.0, reduction=reduction).total
    assert loss.item() == 0.0
    loss.backward()
    assert all(one.S.grad is not None for one in chunks)


def test_loss_of_extreme_scores_is_finite() -> None:
    S = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    predicate = torch.tensor([1, 0])
    none = torch.zeros(0, 1)
    annotated = torch.nn.functional.one_hot(predicate, 2).bool()
    loss = relation_loss([Scored(S, predicate, annotated, none, predicate[:0], 1)], 0.01).total
    loss.backward()
    assert loss.isfinite()
    assert S.grad is not None
    assert S.grad.isfinite().all()


def chunks_of_batch(own: slice) -> list[Scored]:
    """Return some of the four chunks of a batch, one of which is empty."""
    sizes = [(4, 3, 2), (0, 0, 1), (6, 5, 3), (1, 2, 1)]
    return [scored(*size, seed=number) for number, size in enumerate(sizes)][own]


def loss_and_gradients(own: slice) -> list[Tensor]:
    torch.manual_seed(0)
    W, U = (torch.randn(n, n, dtype=torch.float64, requires_grad=True) for n in (PREDICATES, CLASSES))
    chunks = [one._replace(S=one.S.detach() @ W, logits=one.logits.detach() @ U) for one in chunks_of_batch(own)]
    loss = relation_loss(chunks, 0.5, (1.0, 0.7, 0.2)).total
    loss.backward()
    gradients = [tensor.grad for tensor in (W, U) if tensor.grad is not None]
    sum_over_ranks(gradients)
    return [loss.detach(), *gradients]


def on_a_rank(rank: int, folder: str) -> None:
    """Run in a process of its own: save the loss and gradients of a rank."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(loss_and_gradients(slice(2 * rank, 2 * rank + 2)), f"{folder}/{rank}.pt")
    barrier()
    dist.destroy_process_group()


@pytest.mark.thorough
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    mp.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    single = loss_and_gradients(slice(0, 4))
    for rank in (0, 1):
        outputs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(outputs[0], single[0])  # chunks are summed in order, on whatever rank
        for ours, expected in zip(outputs[1:], single[1:], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.thorough
def test_loss_is_50_times_faster_than_its_naive_twin() -> None:
    """At 500 triplets, forward and backward, in CPU time."""
    one = scored(500, seed=9)

    def seconds(loss: Callable[[], Tensor]) -> float:
        started = time.process_time()
        torch.autograd.grad(loss(), one.S)
        return time.process_time() - started

    def ours() -> Tensor:
        return relation_loss([one], 1.0, (1.0, 1.0, 0.0)).total

    def twin() -> Tensor:
        return (
            reference.predicate_loss(one.S, one.predicate, 1.0)
            + reference.pair_loss(one.S, one.predicate, one.annotated, 1.0)
        ).mean()

    fast = min(seconds(ours) for _ in itertools.repeat(None, 5))
    assert seconds(twin) > 50 * fast


def test_memory_grows_with_triplets_times_predicates() -> None:
    """No tensor saved for the backward pass is larger than triplets x predicates."""
    one = scored(3000, seed=4)
    largest = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        relation_loss([one], 1.0).total.backward()
    assert largest <= 3000 * PREDICATES
