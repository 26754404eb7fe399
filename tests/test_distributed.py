"""Collectives: one, two and four processes give the same global loss and gradients; communication is timed."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from nccl_rules import BrokenRule, nccl_rules
from tiers import thorough
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from groundray.distributed import (
    barrier,
    broadcast,
    communication,
    gather_rows,
    gather_strings,
    gather_words,
    on_every_rank,
    sum_gradient_over_ranks,
    sum_over_chunks,
    sum_over_ranks,
    timed_by,
    world_size,
)
from groundray.loss.grounding_loss import global_similarity, grounding_loss
from groundray.loss.match_map import Kind

SAMPLES, POSITIONS, TOKENS, WIDTH = 10, 5, 6, 7
LENGTHS = torch.tensor([2, 4, 3, 3, 6, 0, 1, 5, 2, 6])  # tokens of each caption; one has none
LATE = 0.5  # seconds


class Case(NamedTuple):
    """A division of samples among ranks, and how results are compared.

    Attributes:
        cuts: where the samples of each rank end.
        chunks: sizes of the global batch's chunks; None for one chunk a rank.
        silent: no token is valid.
    """

    cuts: tuple[int, ...]
    kind: Kind = "dot"
    dtype: torch.dtype = torch.float64
    chunks: tuple[int, ...] | None = None
    silent: bool = False

    def chunks_in(self, own: slice) -> list[int]:
        """Return the sizes of the chunks in a rank's part of the samples; one chunk if the case has none."""
        if self.chunks is None:
            return [own.stop - own.start]
        ends = itertools.accumulate(self.chunks)
        return [size for size, end in zip(self.chunks, ends, strict=True) if own.start < end <= own.stop]


CASES = {
    2: [
        Case((4, 8)),
        Case((4, 8), "cosine", chunks=(2, 2, 2, 2)),
        Case((0, 8)),
        Case((3, 8), "cosine", torch.float32),
        Case((4, 8), silent=True),
        Case((4, 8), dtype=torch.float32, chunks=(2, 2, 2, 2)),
        Case((6, 10), "cosine", chunks=(3, 3, 2, 2)),
        Case((6, 10), dtype=torch.float32, chunks=(3, 3, 2, 2)),
        Case((2, 4), dtype=torch.float32, chunks=(1, 1, 1, 1, 0)),
        Case((6, 10), dtype=torch.bfloat16, chunks=(3, 3, 2, 2)),
    ],
    4: [
        Case((2, 4, 6, 8)),
        Case((2, 4, 6, 8), "cosine", chunks=(1,) * 8),
        Case((0, 3, 3, 8)),
        Case((1, 4, 5, 8), "cosine", torch.float32),
        Case((2, 4, 6, 8), dtype=torch.float32, chunks=(2, 2, 2, 2)),
        Case((3, 6, 8, 10), "cosine", chunks=(3, 3, 2, 2)),
        Case((3, 6, 8, 10), dtype=torch.float32, chunks=(3, 3, 2, 2)),
        Case((3, 6, 8, 10), "cosine", torch.bfloat16, chunks=(3, 3, 2, 2)),
    ],
}


def results(case: Case, own: slice) -> list[Tensor]:
    """Return the loss, the similarities and the summed gradient of each parameter, from a rank's own samples."""
    heads, V, W, valid = embedded(case, own)
    loss = grounding_loss(V, W, valid, 0.1, case.kind, case.chunks_in(own))
    loss.backward()
    gradients = [parameter.grad for parameter in heads.parameters() if parameter.grad is not None]
    sum_over_ranks(gradients)
    return [loss.detach(), global_similarity(V.detach(), W.detach(), valid, case.kind), *gradients]


def naive_results(case: Case) -> list[Tensor]:
    """Return the same of all samples, pair by pair."""
    import reference  # not in each rank's process: it imports scipy

    heads, V, W, valid = embedded(case, slice(0, case.cuts[-1]))
    S = reference.similarity(V, W, valid, case.kind)
    loss = reference.two_way_nt_xent(S, 0.1)
    loss.backward()
    return [loss.detach(), S.detach(), *(p.grad for p in heads.parameters() if p.grad is not None)]


def embedded(case: Case, own: slice) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Return two heads, and the embeddings that they give of a rank's own samples, chunk by chunk."""
    torch.manual_seed(0)
    heads = nn.ModuleDict({"visual": nn.Linear(WIDTH, WIDTH), "language": nn.Linear(WIDTH, WIDTH)}).double()
    # the first four captions have at most four tokens: each rank pads to its own longest
    longest = 4 if own.stop <= 4 else TOKENS
    images = torch.randn(SAMPLES, POSITIONS, WIDTH, dtype=torch.float64)[own]
    captions = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=torch.float64)[own]
    valid = (torch.arange(TOKENS) < LENGTHS[:, None])[own, :longest] & (not case.silent)
    heads, images, captions = heads.to(case.dtype), images.to(case.dtype), captions.to(case.dtype)
    sizes = case.chunks_in(own)
    V = torch.cat([heads["visual"](chunk.clone()) for chunk in images.split(sizes)])
    W = torch.cat([heads["language"](chunk.clone()) for chunk in captions.split(sizes)])[:, :longest]
    return heads, V, W, valid


def on_a_rank(rank: int, size: int, folder: str) -> None:
    """Run in a process of its own: save a rank's results in every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    with nccl_rules() as collectives:
        outputs = [results(case, slice((0, *case.cuts)[rank], case.cuts[rank])) for case in CASES[size]]
        assert on_every_rank(rank, -rank) == (tuple(range(size)), tuple(range(0, -size, -1)))
        assert gather_strings("é" * rank) == ["é" * other for other in range(size)]
        assert [received(rank, source) for source in range(size)] == [[source, -source] for source in range(size)]
        assert timed_collectives() == {"forward": 3, "backward": 2}
        assert gradient_of_halves(rank, size) == 1 + 2**-7
        assert len(collectives) > 5 * len(CASES[size])
    torch.save(outputs, f"{folder}/{rank}.pt")
    if size == 2:
        torch.save(broken_rules(rank), f"{folder}/rules-{rank}.pt")
    barrier()
    dist.destroy_process_group()
    if size == 2:
        torch.save(seconds_waited(rank, folder), f"{folder}/waited-{rank}.pt")


@pytest.fixture(scope="module", params=[2, thorough(4)])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A number of ranks, and the folder with what they have saved."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(on_a_rank, (request.param, str(folder)), nprocs=request.param)
    return request.param, folder


def test_many_processes_give_the_loss_and_gradients_of_one(ranks: tuple[int, Path]) -> None:
    size, folder = ranks
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = [results(case, slice(0, case.cuts[-1])) for case in CASES[size]]
    torch.set_num_threads(threads)
    for rank in range(size):
        outputs = torch.load(folder / f"{rank}.pt", weights_only=True)
        for case, distributed, single in zip(CASES[size], outputs, expected, strict=True):
            assert len(distributed) == len(single) == 6
            for tensor, other in zip(distributed, single, strict=True):
                # relative to each gradient's largest entry: small entries may be differences of larger numbers
                tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-6}[case.dtype]
                assert (tensor - other).abs().max() <= tolerance * other.abs().max(), case
            if case.chunks:
                assert torch.equal(distributed[0], single[0]), case  # in chunks, the loss has the same bits
    for case, single in zip(CASES[size], expected, strict=True):
        if case.dtype == torch.float64:
            for tensor, naive in zip(single, naive_results(case), strict=True):
                assert (tensor - naive).abs().max() <= 1e-12 * naive.abs().max().clamp(min=1), case


def received(rank: int, source: int) -> list[float]:
    """Return what a rank has after the broadcast of another rank's number and its negative."""
    x = torch.tensor([rank, -rank], dtype=torch.bfloat16)
    broadcast(x, source)
    return x.tolist()


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


def gradient_of_halves(rank: int, size: int) -> float:
    """Return the sum over ranks of a gradient of words in bfloat16, of which rank 0 has 1 and all others 1.5 / 2^8.

    To the nearest bfloat16 it is 1 + 1 / 2^7. Summed in bfloat16, each of several smaller parts would be rounded away.
    """
    W, valid = torch.ones(1, 2, 4, dtype=torch.bfloat16, requires_grad=True), torch.tensor([[True, False]])
    words, _ = gather_words(W, valid)
    assert words.dtype == torch.float32
    words.backward(torch.full_like(words, 1.5 / 2**8 / (size - 1) if rank else 1.0))
    assert W.grad is not None
    assert (W.grad[:, 1] == 0).all()
    return W.grad[0, 0, 0].item()


def test_every_collective_is_the_identity_on_one_rank() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert world_size() == 1
    words, valid = gather_words(x[:, :, None], x > 1)
    assert words.tolist() == [[0], [1], [2], [3], [4], [5]]
    assert valid.tolist() == [[False, False, True], [True, True, True]]
    assert gather_rows(x) is x
    assert on_every_rank(3, 4) == ((3,), (4,))
    assert gather_strings("text") == ["text"]
    barrier()
    sum_over_ranks([x])
    broadcast(x, 0)
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]


def seconds_waited(rank: int, folder: str) -> dict[str, float]:
    """Return how long this rank is in each collective, for which rank 0 is late.

    Tensors on `meta` stand for those of a GPU: their backend returns at once, as NCCL's does, and it is an error to
    ask for their numbers.
    """
    import torch.testing._internal.distributed.fake_pg  # registers the backend

    dist.init_process_group("cpu:gloo,meta:fake", init_method=f"file://{folder}/devices", rank=rank, world_size=2)
    barrier()
    waited = {}
    x = torch.ones(3, 4, device="meta", requires_grad=True)
    for name, collective in {
        "barrier": barrier,
        "numbers": lambda: on_every_rank(rank),
        "strings": lambda: gather_strings("text"),
        "rows": lambda: gather_rows(x),
        "words": lambda: gather_words(x[None], torch.ones(1, 3, dtype=torch.bool))[0].sum().backward(),
        "chunks": lambda: sum_over_chunks([x, x]).sum().backward(),
        "rows of known number": lambda: gather_rows(x, (3, 3)),
        "gradient": lambda: sum_gradient_over_ranks(x).sum().backward(),
        "reduction": lambda: sum_over_ranks([x.detach()]),
        "broadcast": lambda: broadcast(x.detach(), 0),
    }.items():
        if rank == 0:
            time.sleep(LATE)
        began = time.monotonic()
        collective()
        waited[name] = time.monotonic() - began
        barrier()
    dist.destroy_process_group()
    return waited


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_host_waits_for_ranks_where_it_needs_them_and_never_for_a_device(ranks: tuple[int, Path]) -> None:
    waited = torch.load(ranks[1] / "waited-1.pt", weights_only=True)
    late = {name for name, seconds in waited.items() if seconds > LATE / 2}
    assert late == {"barrier", "numbers", "strings", "rows", "words", "chunks"}, waited


def broken_rules(rank: int) -> dict[str, str]:
    """Return the message of each broken rule."""
    square, single = torch.ones(4, 4), torch.ones(1)
    messages = {}
    for name, broken in {
        "order": lambda: dist.all_reduce(single) if rank else dist.all_gather([single, single.clone()], single),
        "shape": lambda: dist.all_reduce(torch.ones(2 + rank)),
        "type": lambda: dist.all_reduce(single.double() if rank else single),
        "operation": lambda: dist.all_reduce(single, dist.ReduceOp.MAX if rank else dist.ReduceOp.MIN),
        "contiguous": lambda: dist.all_reduce(square.T[1:]),
        "device": lambda: dist.all_gather([single, single.to("meta")], single),
        "short": lambda: dist.all_reduce(single.short()),
        "outputs": lambda: dist.all_gather([single], single),
        "parts": lambda: dist.reduce_scatter_tensor(single, square),
        "source": lambda: dist.broadcast(single, rank),
        "unknown": lambda: dist.reduce(single, 0),
    }.items():
        with nccl_rules():
            try:
                broken()
            except BrokenRule as error:
                messages[name] = str(error)
    return messages


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_every_broken_rule_of_nccl_is_found(ranks: tuple[int, Path]) -> None:
    first, second = (torch.load(ranks[1] / f"rules-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert list(first) == [
        *("order", "shape", "type", "operation", "contiguous", "device", "short", "outputs", "parts", "source"),
        "unknown",
    ]
    assert {**first, "order": ""} == {**second, "order": ""}  # each rank names its own collective
    assert "rank 0: all_gather(float32[1]" in first["order"]
    assert "rank 1: all_reduce(float32[3])" in first["shape"]
