"""One process and two give the same global loss and the same gradient of every parameter."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from groundray.loss.collectives import barrier, gather_rows, gather_words, sum_over_ranks, world_size
from groundray.loss.grounding import grounding_loss

SAMPLES, POSITIONS, TOKENS, WIDTH = 7, 5, 6, 4


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"visual": nn.Linear(WIDTH, WIDTH), "language": nn.Linear(WIDTH, WIDTH)}).double()


def loss_and_gradients(own: slice, longest: int, kind: str) -> list[Tensor]:
    """The loss, the similarities and the summed gradients, from a rank's own samples (captions padded to `longest`)."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, POSITIONS, WIDTH, dtype=torch.float64, generator=generator)[own]
    captions = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=torch.float64, generator=generator)[own, :longest]
    valid = (torch.arange(TOKENS) < torch.tensor([2, 4, 3, 3, 6, 1, 5])[:, None])[own, :longest]
    heads = model()
    loss, S = grounding_loss(heads["visual"](images), heads["language"](captions), valid, 0.1, kind)  # type: ignore[arg-type]
    loss.backward()
    gradients = [parameter.grad for parameter in heads.parameters()]
    sum_over_ranks([gradient for gradient in gradients if gradient is not None])
    return [loss.detach(), S.detach(), *(gradient for gradient in gradients if gradient is not None)]


CASES = [([0, 4, 7], "dot"), ([0, 4, 7], "cosine"), ([0, 0, 7], "dot")]  # uneven shares, one of them empty


def on_a_rank(rank: int, folder: str) -> None:
    """A process of its own: the results of rank `rank` in every case, saved."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = []
    for cuts, kind in CASES:
        own = slice(cuts[rank], cuts[rank + 1])
        # the first rank's captions are shorter: ranks pad to what they hold themselves
        found.append(loss_and_gradients(own, 4 if own.stop <= 4 else TOKENS, kind))
    torch.save(found, f"{folder}/{rank}.pt")
    barrier()
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    mp.spawn(on_a_rank, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        cases = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for (_, kind), found in zip(CASES, cases, strict=True):
            expected = loss_and_gradients(slice(0, SAMPLES), TOKENS, kind)
            for ours, alone in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, alone, rtol=1e-12, atol=1e-14)


def test_alone_every_collective_is_the_identity() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert world_size() == 1
    assert gather_words(x) is x
    assert gather_rows(x) is x
    sum_over_ranks([x])
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
