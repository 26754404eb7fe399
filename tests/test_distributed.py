"""Collectives: one, two and four processes give the same global loss and gradients; communication is timed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from groundray.distributed import (
    barrier,
    communication,
    gather_rows,
    gather_words,
    row_offset,
    sum_gradient_over_ranks,
    sum_over_ranks,
    timed_by,
    world_size,
)
from groundray.loss.grounding_loss import global_similarity, grounding_loss
from groundray.loss.match_map import Kind

SAMPLES, POSITIONS, TOKENS, WIDTH = 8, 5, 6, 7
LENGTHS = torch.tensor([2, 4, 3, 3, 6, 0, 1, 5])  # tokens of each caption; one has none


class Case(NamedTuple):
    """A division of samples among ranks, and how results are compared.

    Attributes:
        cuts: where the samples of each rank end.
        silent: no token is valid.
    """

    cuts: tuple[int, ...]
    kind: Kind = "dot"
    dtype: torch.dtype = torch.float64
    block: int | None = None
    silent: bool = False


CASES = {
    2: [
        Case((4, 8)),
        Case((4, 8), "cosine", block=2),
        Case((0, 8)),
        Case((3, 8), "cosine", torch.float32),
        Case((4, 8), silent=True),
        Case((4, 8), dtype=torch.float32, block=2),
    ],
    4: [
        Case((2, 4, 6, 8)),
        Case((2, 4, 6, 8), "cosine", block=1),
        Case((0, 3, 3, 8)),
        Case((1, 4, 5, 8), "cosine", torch.float32),
        Case((2, 4, 6, 8), dtype=torch.float32, block=2),
    ],
}


def results(case: Case, own: slice) -> list[Tensor]:
    """Return the loss, the similarities and the summed gradient of each parameter, from a rank's own samples."""
    torch.manual_seed(0)
    heads = nn.ModuleDict({"visual": nn.Linear(WIDTH, WIDTH), "language": nn.Linear(WIDTH, WIDTH)}).double()
    # the first four captions have at most four tokens: each rank pads to its own longest
    longest = 4 if own.stop <= 4 else TOKENS
    images = torch.randn(SAMPLES, POSITIONS, WIDTH, dtype=torch.float64)[own]
    captions = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=torch.float64)[own]
    valid = (torch.arange(TOKENS) < LENGTHS[:, None])[own, :longest] & (not case.silent)
    heads, images, captions = heads.to(case.dtype), images.to(case.dtype), captions.to(case.dtype)
    size = case.block or SAMPLES  # as in the training loop, a chunk at a time
    V = torch.cat([heads["visual"](chunk.clone()) for chunk in images.split(size)])
    W = torch.cat([heads["language"](chunk.clone()) for chunk in captions.split(size)])[:, :longest]
    loss = grounding_loss(V, W, valid, 0.1, case.kind, case.block)
    loss.backward()
    gradients = [parameter.grad for parameter in heads.parameters() if parameter.grad is not None]
    sum_over_ranks(gradients)
    return [loss.detach(), global_similarity(V.detach(), W.detach(), valid, case.kind), *gradients]


def on_a_rank(rank: int, size: int, folder: str) -> None:
    """Run in a process of its own: save a rank's results in every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    outputs = [results(case, slice((0, *case.cuts)[rank], case.cuts[rank])) for case in CASES[size]]
    assert row_offset(torch.zeros(rank, 1)) == sum(range(rank))
    assert timed_collectives() == {"forward": 5, "backward": 2}
    torch.save(outputs, f"{folder}/{rank}.pt")
    barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_many_processes_give_the_loss_and_gradients_of_one(size: int, tmp_path: Path) -> None:
    mp.spawn(on_a_rank, (size, str(tmp_path)), nprocs=size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [results(case, slice(0, SAMPLES)) for case in CASES[size]]
    torch.set_num_threads(threads)
    for rank in range(size):
        outputs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for case, distributed, single in zip(CASES[size], outputs, expected, strict=True):
            assert len(distributed) == len(single) == 6
            for tensor, other in zip(distributed, single, strict=True):
                # relative to each gradient's largest entry: small entries may be differences of larger numbers
                tolerance = 1e-12 if case.dtype == torch.float64 else 1e-6
                assert (tensor - other).abs().max() <= tolerance * other.abs().max(), case
            if case.block:
                assert torch.equal(distributed[0], single[0]), case  # in chunks, the loss has the same bits


def timed_collectives() -> dict[str, int]:
    """Return how many collectives are timed in forward and backward passes, the latter in a thread of its own.

    Autograd runs the backward pass of a GPU's tensors in another thread.
    """
    counts = {"forward": 0, "backward": 0}
    phase = "forward"

    @contextlib.contextmanager
    def timer() -> Iterator[None]:
        counts[phase] += 1
        yield

    W, valid = torch.ones(2, 3, 4, requires_grad=True), torch.ones(2, 3, dtype=torch.bool)
    with timed_by(timer):
        total = sum_gradient_over_ranks(gather_words(W, valid)[0].sum())
    phase = "backward"
    thread = threading.Thread(target=total.backward)
    thread.start()
    thread.join()
    with communication():  # the timer is no longer in force
        return counts


def test_every_collective_is_the_identity_on_one_rank() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert world_size() == 1
    words, valid = gather_words(x[:, :, None], x > 1)
    assert words.tolist() == [[0], [1], [2], [3], [4], [5]]
    assert valid.tolist() == [[False, False, True], [True, True, True]]
    assert gather_rows(x) is x
    assert row_offset(x) == 0
    sum_over_ranks([x])
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
