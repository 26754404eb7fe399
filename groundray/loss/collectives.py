"""Collectives with gradient over torch.distributed's default group; at world size 1 each is the identity.

The convention that makes one process and many agree: every rank computes the same global loss, and the gradient of a
parameter is the *sum over ranks* of what backward leaves on each of them. From it follows the gradient of each gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Ranks that take part; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def barrier() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        sum_over_ranks([torch.zeros(1, device=_device())])


def gather_words(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks; dimension 1 is padded with zeros to the longest.

    Each rank uses all words against its own images, so the gradient of a rank's words is the sum of what all ranks
    have for them. Ranks may hold different numbers of rows, none included.
    """
    return x if world_size() == 1 else _Gather.apply(_same_length(x), True)


def gather_rows(x: Tensor, shared: bool = False) -> Tensor:
    """The rows of all ranks, in the order of ranks.

    Each rank computes the same of all of them, so the gradient of a rank's rows is what it has itself; unless they are
    `shared`: each rank uses all rows for what is its own, so the gradient of a rank's rows is the sum of what all
    ranks have for them.
    """
    return x if world_size() == 1 else _Gather.apply(x, shared)


def sum_of_chunks(parts: Sequence[Tensor]) -> Tensor:
    """The sum over all chunks of the global batch, given a rank's own: one tensor a chunk, of the same shape.

    Chunks are added in their order, so the sum is the same on any number of ranks.
    """
    return gather_rows(torch.stack(list(parts))).sum(dim=0)


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over ranks. One flat all-reduce a dtype."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        dist.all_reduce(flat)
        start = 0
        for tensor in same:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, every_rank_contributes: bool) -> Tensor:
        sizes = _sizes(x)
        ctx.own = slice(sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1]))
        ctx.every_rank_contributes = every_rank_contributes
        return _gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        if ctx.every_rank_contributes:
            gradient = gradient.contiguous().clone()
            dist.all_reduce(gradient)
        return gradient[ctx.own], None


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' rows: each sends as many as the longest has, since all_gather wants equal shapes."""
    longest = max(sizes)
    sent = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])]).contiguous()
    # bool does not travel on every backend
    carried = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
    received = [torch.empty_like(carried) for _ in sizes]
    dist.all_gather(received, carried)
    rows = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    return rows.to(x.dtype)


def _sizes(x: Tensor) -> list[int]:
    """How many rows each rank has."""
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=_device())
    sizes[dist.get_rank()] = x.shape[0]
    dist.all_reduce(sizes)
    return sizes.tolist()


def _same_length(x: Tensor) -> Tensor:
    """The tensor with dimension 1 padded to the longest of all ranks."""
    longest = torch.tensor(x.shape[1], dtype=torch.int64, device=_device())
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    missing = int(longest) - x.shape[1]
    return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1) if missing else x


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
