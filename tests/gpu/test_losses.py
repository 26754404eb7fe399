"""The losses on a GPU against float64 on the CPU, and against themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from machines import EVERYWHERE, Machine
from one_step import distance
from torch import Tensor

from groundray.arithmetic import using
from groundray.benchmarks import contrastive_loss
from groundray.benchmarks.contrastive_loss import Shape, einsum_and_max
from groundray.loss import match_map
from groundray.loss.grounding_loss import grounding_loss
from groundray.loss.match_map import Kind
from groundray.loss.relation_loss import Scored, annotated_with, relation_loss

Loss = Callable[..., Tensor]


def shape_of(machine: Machine) -> Shape:
    return Shape(96, 196, 32, 768) if machine.large else Shape(6, 9, 5, 16)


def exact_problem(shape: Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Return V, W and a mask of captions of many lengths, in float64.

    All numbers are eighths of small integers, so that each match is exact in every type and in every order of adding
    up, and the best position of a token does not depend on rounding. Often several are equally good.
    """
    generator = torch.Generator().manual_seed(0)
    V, W = (
        torch.randint(-3, 4, (shape.batch, rows, shape.dim), generator=generator).double() / 8
        for rows in (shape.positions, shape.tokens)
    )
    lengths = torch.randint(1, shape.tokens + 1, (shape.batch, 1), generator=generator)
    return V, W, torch.arange(shape.tokens) < lengths


def with_gradients(
    loss: Loss, inputs: Sequence[Tensor], others: Sequence[Tensor], device: str, dtype: torch.dtype
) -> list[Tensor]:
    """Return the loss of inputs in a type on a device, and their gradients."""
    sources = [x.to(device, dtype).requires_grad_() for x in inputs]
    with using("float32", device):
        value = loss(*sources, *(x.to(device) for x in others))
        return [value.detach(), *torch.autograd.grad(value, sources)]


def contrast(kind: Kind, chunks: Sequence[int] | None = None) -> Loss:
    return lambda V, W, valid: grounding_loss(V, W, valid, contrastive_loss.TEMPERATURE, kind, chunks)


# relative errors of the loss and of the gradients; gradients of bfloat16 are rounded to it
@pytest.mark.parametrize(
    ("kind", "dtype", "of_loss", "of_gradients"),
    [
        ("dot", torch.float32, 2e-5, 2e-4),
        ("dot", torch.bfloat16, 2e-5, 4e-3),
        ("dot", torch.float64, 1e-11, 1e-11),
        ("cosine", torch.float64, 1e-11, 1e-10),
    ],
)
@EVERYWHERE
def test_the_grounding_loss_is_that_of_float64_on_the_cpu(
    machine: Machine, kind: Kind, dtype: torch.dtype, of_loss: float, of_gradients: float
) -> None:
    shape = shape_of(machine)
    V, W, valid = exact_problem(shape)
    chunks = [shape.batch // 3] * 3
    truth = with_gradients(contrast(kind), (V, W), (valid,), "cpu", torch.float64)
    if kind == "dot":
        naive = with_gradients(einsum_and_max, (V, W), (valid,), "cpu", torch.float64)
        assert distance(truth[0], naive[0]) < 1e-12
    found = with_gradients(contrast(kind, chunks), (V, W), (valid,), machine.device, dtype)
    assert distance(found[0], truth[0]) < of_loss
    assert max(distance(a, b) for a, b in zip(found[1:], truth[1:], strict=True)) < of_gradients


@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradients"),
    [(torch.float32, 2e-5, 2e-4), (torch.bfloat16, 2e-5, 4e-3), (torch.float64, 1e-11, 1e-11)],
)
@EVERYWHERE
def test_the_sigmoid_loss_is_that_of_float64_on_the_cpu(
    machine: Machine, dtype: torch.dtype, of_loss: float, of_gradients: float
) -> None:
    shape = shape_of(machine)
    V, W, valid = exact_problem(shape)
    naive = with_gradients(contrastive_loss.einsum_and_sigmoid, (V, W), (valid,), "cpu", torch.float64)
    found = with_gradients(contrastive_loss.our_sigmoid, (V, W), (valid,), machine.device, dtype)
    assert distance(found[0], naive[0]) < of_loss
    assert max(distance(a, b) for a, b in zip(found[1:], naive[1:], strict=True)) < of_gradients


@EVERYWHERE
def test_the_check_sees_another_best_position(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    V, W, valid = exact_problem(shape_of(machine))
    truth = with_gradients(contrast("dot"), (V, W), (valid,), "cpu", torch.float64)
    of_positions = match_map._bags_of_positions

    def last_instead_of_best(V: Tensor, winner: Tensor, weight: Tensor) -> Tensor:
        return of_positions(V, torch.full_like(winner, len(V) // len(winner) - 1), weight)

    monkeypatch.setattr(match_map, "_bags_of_positions", last_instead_of_best)
    found = with_gradients(contrast("dot"), (V, W), (valid,), machine.device, torch.float32)
    assert distance(found[0], truth[0]) < 2e-5
    assert distance(found[2], truth[2]) > 2e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EVERYWHERE
def test_the_grounding_loss_has_the_same_bits_each_time(machine: Machine, dtype: torch.dtype) -> None:
    shape = shape_of(machine)
    generator = torch.Generator().manual_seed(0)
    V, W = (torch.randn(shape.batch, n, shape.dim, generator=generator) for n in (shape.positions, shape.tokens))
    valid = torch.arange(shape.tokens) < torch.randint(1, shape.tokens + 1, (shape.batch, 1), generator=generator)
    first, *others = (
        with_gradients(contrast("dot"), (V, W), (valid,), machine.device, dtype)
        for _ in range(4 if machine.large else 2)
    )
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@EVERYWHERE
def test_the_relation_losses_are_those_of_float64_on_the_cpu(machine: Machine, dtype: torch.dtype, most: float) -> None:
    images, objects, triplets, predicates, classes = (180, 1800, 2500, 114, 55) if machine.large else (4, 20, 30, 7, 5)
    generator = torch.Generator().manual_seed(0)

    def drawn(below: int, *size: int) -> Tensor:
        return torch.randint(0, below, size, generator=generator)

    scores = torch.randn(triplets, predicates, generator=generator, dtype=torch.float64)
    logits = torch.randn(objects, classes, generator=generator, dtype=torch.float64)
    annotations = drawn(objects, triplets, 2), drawn(predicates, triplets), drawn(classes, objects)

    def loss(S: Tensor, logits: Tensor, pairs: Tensor, predicate: Tensor, truth: Tensor) -> Tensor:
        annotated = annotated_with(pairs, predicate, predicates)
        return relation_loss([Scored(S, predicate, annotated, logits, truth, images)], 1.0).total

    truth = with_gradients(loss, (scores, logits), annotations, "cpu", torch.float64)
    found, again = (with_gradients(loss, (scores, logits), annotations, machine.device, dtype) for _ in range(2))
    assert max(distance(a, b) for a, b in zip(found, truth, strict=True)) < most
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
