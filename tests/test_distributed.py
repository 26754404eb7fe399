"""One process, two and four give the same global loss and the same gradient of every parameter."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from groundray.distributed import barrier, gather_rows, gather_words, row_offset, sum_over_ranks, world_size
from groundray.loss.grounding_loss import global_similarity, grounding_loss
from groundray.loss.match_map import Kind

SAMPLES, POSITIONS, TOKENS, WIDTH = 8, 5, 6, 7
LENGTHS = torch.tensor([2, 4, 3, 3, 6, 0, 1, 5])  # tokens of each caption; one has none


class Case(NamedTuple):
    """How samples are shared out (where each rank's end), and how they are compared."""

    cuts: tuple[int, ...]
    kind: Kind = "dot"
    dtype: torch.dtype = torch.float64
    block: int | None = None
    silent: bool = False  # no token is valid


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
    """The loss, the similarities and the summed gradient of each parameter, from a rank's own samples."""
    torch.manual_seed(0)
    heads = nn.ModuleDict({"visual": nn.Linear(WIDTH, WIDTH), "language": nn.Linear(WIDTH, WIDTH)}).double()
    # the first four captions have at most four tokens: ranks pad to what they hold themselves
    longest = 4 if own.stop <= 4 else TOKENS
    images = torch.randn(SAMPLES, POSITIONS, WIDTH, dtype=torch.float64)[own]
    captions = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=torch.float64)[own]
    valid = (torch.arange(TOKENS) < LENGTHS[:, None])[own, :longest] & (not case.silent)
    heads, images, captions = heads.to(case.dtype), images.to(case.dtype), captions.to(case.dtype)
    size = case.block or SAMPLES  # as in the loop: a chunk at a time, each a tensor of its own
    V = torch.cat([heads["visual"](chunk.clone()) for chunk in images.split(size)])
    W = torch.cat([heads["language"](chunk.clone()) for chunk in captions.split(size)])[:, :longest]
    loss = grounding_loss(V, W, valid, 0.1, case.kind, case.block)
    loss.backward()
    gradients = [parameter.grad for parameter in heads.parameters() if parameter.grad is not None]
    sum_over_ranks(gradients)
    return [loss.detach(), global_similarity(V.detach(), W.detach(), valid, case.kind), *gradients]


def on_a_rank(rank: int, size: int, folder: str) -> None:
    """A process of its own: the results of a rank in every case, saved."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    found = [results(case, slice((0, *case.cuts)[rank], case.cuts[rank])) for case in CASES[size]]
    assert row_offset(torch.zeros(rank, 1)) == sum(range(rank))
    torch.save(found, f"{folder}/{rank}.pt")
    barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_many_processes_are_one(size: int, tmp_path: Path) -> None:
    mp.spawn(on_a_rank, (size, str(tmp_path)), nprocs=size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [results(case, slice(0, SAMPLES)) for case in CASES[size]]
    torch.set_num_threads(threads)
    for rank in range(size):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for case, ours, alone in zip(CASES[size], found, expected, strict=True):
            assert len(ours) == len(alone) == 6
            for one, other in zip(ours, alone, strict=True):
                # of each parameter's gradient as a whole: single numbers of it may be differences of larger ones
                tolerance = 1e-12 if case.dtype == torch.float64 else 1e-6
                assert (one - other).abs().max() <= tolerance * other.abs().max(), case
            if case.block:
                assert torch.equal(ours[0], alone[0]), case  # in chunks, to the last bit


def test_alone_every_collective_is_the_identity() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert world_size() == 1
    words, valid = gather_words(x[:, :, None], x > 1)
    assert words.tolist() == [[0], [1], [2], [3], [4], [5]]
    assert valid.tolist() == [[False, False, True], [True, True, True]]
    assert gather_rows(x) is x
    assert row_offset(x) == 0
    sum_over_ranks([x])
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
