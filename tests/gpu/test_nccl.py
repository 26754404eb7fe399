"""The process group of a GPU's workers, of one rank: NCCL needs a GPU for each rank. What it does with several ranks is
tested over gloo (`tests/test_distributed.py`, `tests/nccl_rules.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from machines import EVERYWHERE, GPUS, Machine
from torch import Tensor

from groundray import distributed


@pytest.fixture
def group(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A group of one rank that communicates as if it had several."""
    backends = distributed.GPU_BACKENDS if machine.large else "gloo"
    dist.init_process_group(backends, init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    monkeypatch.setattr(distributed, "world_size", lambda: Alone(1))
    yield machine
    dist.destroy_process_group()


class Alone(int):
    """A number of ranks of 1 that is not recognised as such: code for several ranks runs."""

    def __eq__(self, other: object) -> bool:
        return False

    def __gt__(self, other: int) -> bool:
        return True

    __hash__ = int.__hash__


TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@EVERYWHERE
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 5])
def test_rows_of_every_type_are_gathered_and_reduced(group: Machine, dtype: torch.dtype, rows: int) -> None:
    x = torch.arange(rows * 3, device=group.device).reshape(rows, 3).to(dtype)
    assert distributed._sizes(x) == [rows]
    assert torch.equal(distributed.gather_rows(x, [rows]), x)
    if dtype.is_floating_point:
        assert torch.equal(distributed._reduce_scatter(x, [rows]), x)
        summed = [x.clone(), x.clone().flatten()]
        distributed.sum_over_ranks(summed)
        distributed.broadcast(summed[0], 0)
        assert all(torch.equal(a.view_as(x), x) for a in summed)


@EVERYWHERE
def test_words_and_their_gradients(group: Machine) -> None:
    W = torch.randn(4, 6, 8, device=group.device, requires_grad=True)
    valid = torch.arange(6) < torch.tensor([[3], [0], [6], [1]])
    words, mask = distributed.gather_words(W, valid)
    words.square().sum().backward()
    assert torch.equal(mask, valid)
    assert W.grad is not None
    assert torch.equal(W.grad, 2 * W.detach() * valid[:, :, None].to(group.device))


@GPUS
def test_the_host_does_not_wait_for_sums_and_exchanges_numbers_at_once(group: Machine) -> None:
    """NCCL's collectives are enqueued behind a long product. Numbers of the host are exchanged meanwhile."""
    side = 8192 if group.large else 16
    a = torch.ones(side, side, device=group.device)
    distributed.start_sum_over_ranks(a.clone())()  # makes the communicator
    sums: list[Tensor] = []
    done = torch.cuda.Event()

    def train() -> None:
        for _ in range(20):
            product = a @ a
        flat = product[0].contiguous()
        wait = distributed.start_sum_over_ranks(flat)
        assert distributed.on_every_rank(3, 4) == ((3,), (4,))
        distributed.barrier()
        wait()
        sums.append(flat)
        done.record()

    waits = group.host_waits(train)
    busy = not done.query()
    assert waits.total() == 0
    assert busy, "the host has waited for the GPU"
    assert torch.equal(sums[0].cpu(), torch.full((side,), float(side)))


@EVERYWHERE
def test_strings(group: Machine) -> None:
    assert distributed.gather_strings("naïve") == ["naïve"]
