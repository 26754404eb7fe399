"""The contenders of `groundray bench loss` that need a GPU, and the memory that groundray's loss takes there."""

from __future__ import annotations

import pytest
import torch
from machines import GPU, REAL, Machine
from one_step import distance

from groundray.arithmetic import using
from groundray.benchmarks.contrastive_loss import (
    GPU_ONLY,
    Shape,
    contenders,
    measure,
    our_needs,
    ours,
    random_problem,
)
from groundray.benchmarks.measure import Missing
from groundray.benchmarks.published_losses import OURS
from groundray.benchmarks.session import Session


@pytest.mark.parametrize("name", GPU_ONLY)
@pytest.mark.parametrize("machine", [GPU], indirect=True)
def test_contenders_compute_the_loss_and_its_gradients(machine: Machine, name: str) -> None:
    shape = Shape(24)
    contender = contenders(shape, machine.device, torch.bfloat16)[name]
    if contender.absent:
        pytest.skip(contender.absent.reason)
    problem = random_problem(shape, 14, machine.device, torch.bfloat16)
    with using("bf16", machine.device):
        found, expected = (
            (value := loss(*problem.arguments), *torch.autograd.grad(value, problem.sources))
            for loss in (contender.loss, ours)
        )
    assert distance(found[0], expected[0]) < 3e-2
    assert max(distance(a, b) for a, b in zip(found[1:], expected[1:], strict=True)) < 0.3  # another best position


@REAL
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_loss_takes_about_the_memory_that_is_said_at_most(machine: Machine, precision: str) -> None:
    batch = 512 if machine.large else 24
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    (row,) = measure([batch], [32], [OURS], machine.device, precision, Session(1, max_seconds=10)).rows
    taken = row.figures["scratch"]
    assert not isinstance(taken, Missing)
    assert 0 < taken < 1.5 * our_needs(Shape(batch), machine.device, dtype)
