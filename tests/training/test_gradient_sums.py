"""Gradients summed in buckets during the backward pass have the bits of one sum after it, and start before it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from pretend_gpu import PretendGpu
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from groundray.distributed import barrier, collectives_begun, sum_over_ranks
from groundray.training import gradient_sums
from groundray.training.gradient_sums import GradientSums


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(5, 5) for name in ("first", "second", "rarely", "never", "last")})


def backward(parts: nn.ModuleDict, rank: int, chunk: int) -> None:
    """Leave the gradients of one of two chunks. `rarely` is used by rank 0's first chunk and rank 1's second only."""
    x = parts["first"](torch.full((3, 5), 0.3 + rank + chunk / 7, device=next(parts.parameters()).device))
    x = parts["second"](x.tanh())
    if rank == chunk:
        x = parts["rarely"](x.sin())
    parts["last"](x).square().sum().backward()


def naive(parts: nn.ModuleDict, rank: int) -> list[Tensor]:
    for chunk in range(2):
        backward(parts, rank, chunk)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parts.parameters()]
    sum_over_ranks(gradients)
    return gradients


def in_buckets(parts: nn.ModuleDict, rank: int) -> tuple[list[Tensor], int]:
    """Return the sums, and the number of buckets that were started before the backward pass ended."""
    sums = GradientSums(list(parts.parameters()))
    backward(parts, rank, 0)
    before = collectives_begun()
    with sums.started_by_backward():
        backward(parts, rank, 1)
    started = collectives_begun() - before
    sums.finish()
    return [parameter.grad for parameter in parts.parameters() if parameter.grad is not None], started


def on_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    expected = naive(model(), rank)
    on_cpu, started_on_cpu = in_buckets(model(), rank)
    gradient_sums.BUCKET_BYTES = 100  # a weight, or a weight and its bias
    with PretendGpu() as gpu:
        on_gpu, started = in_buckets(model().to("cuda"), rank)
        collectives = len(gpu.collectives)
    assert started_on_cpu == 0
    assert collectives == 10 // 2
    # the hooks of `never` and of rank 0's `rarely` are not called, so those before `last` wait for the end
    assert started == 1
    for x, y, z in zip(expected, on_cpu, on_gpu, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, z)
    barrier()
    dist.destroy_process_group()


@pytest.mark.thorough
def test_buckets_have_the_bits_of_one_sum_though_ranks_use_other_parameters(tmp_path: Path) -> None:
    spawn(on_a_rank, (str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("size", [1, 100, 10**6])
def test_buckets_hold_each_parameter_once_in_order(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(gradient_sums, "BUCKET_BYTES", size)
    parameters = [torch.zeros(3), torch.zeros(30), torch.zeros(2, 2), torch.zeros(5, dtype=torch.float64)]
    buckets = list(gradient_sums._buckets(parameters))
    assert [id(x) for bucket in buckets for x in bucket] == [id(x) for x in parameters]
    assert all(len({x.dtype for x in bucket}) == 1 for bucket in buckets)
    assert len(buckets) == {1: 4, 100: 3, 10**6: 2}[size]
