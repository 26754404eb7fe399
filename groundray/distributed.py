"""Collectives with gradient over torch.distributed's default group; at world size 1 each is the identity.

The convention that makes one process and many agree: every rank computes the same global loss, and the gradient of a
parameter is the *sum over ranks* of what backward leaves on each of them. From it follows the gradient of each gather.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor


def world_size() -> int:
    """Ranks that take part; 1 where torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


_travelling: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


@contextlib.contextmanager
def timed_by(timer: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Meanwhile, whatever ranks exchange happens inside of a `timer()`, waiting for the slowest rank included."""
    global _travelling
    before, _travelling = _travelling, timer
    try:
        yield
    finally:
        _travelling = before


def barrier() -> None:
    """Return when every rank has come here."""
    if world_size() > 1:
        sum_over_ranks([torch.zeros(1, device=_device())])


def gather_words(
    W: Float[Tensor, "own_caption token dim"], valid: Bool[Tensor, "own_caption token"]
) -> tuple[Float[Tensor, "word dim"], Bool[Tensor, "caption any_token"]]:
    """The words of all ranks as one list, in the order of ranks, and which tokens of all captions are valid.

    Only valid tokens travel; alone, the list is all tokens, valid or not. Each rank uses all words against its own
    images, so the gradient of a rank's words is the sum of what all ranks have for them. Ranks may hold different
    numbers of captions, none included, padded to different lengths.
    """
    if world_size() == 1:
        return W.flatten(0, 1), valid
    everyones = _same_length(valid)
    return _GatherWords.apply(W, valid), _gather(everyones, _sizes(everyones))


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks.

    Each rank computes the same of all of them, so the gradient of a rank's rows is what it has itself.
    """
    return x if world_size() == 1 else _Gather.apply(x)


def sum_gradient_over_ranks(x: Tensor) -> Tensor:
    """A tensor that is the same on all ranks, each of which uses it for what is its own: its gradient is the sum of
    what all ranks have for it."""
    return x if world_size() == 1 else _Shared.apply(x)


def row_offset(x: Tensor) -> int:
    """How many rows the ranks before this one have."""
    return 0 if world_size() == 1 else sum(_sizes(x)[: dist.get_rank()])


def sum_over_chunks(parts: Sequence[Tensor]) -> Tensor:
    """The sum over all chunks of the global batch, given a rank's own: one tensor a chunk, of the same shape.

    Chunks are added in their order, so the sum is the same on any number of ranks.
    """
    return gather_rows(torch.stack(list(parts))).sum(dim=0)


def gather_strings(text: str) -> list[str]:
    """The texts of all ranks, in their order."""
    if world_size() == 1:
        return [text]
    letters = (
        torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
    )
    letters = letters.to(_device())
    sizes = _sizes(letters)
    return [bytes(part.tolist()).decode() for part in _gather(letters, sizes).split(sizes)]


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over ranks. One flat all-reduce a dtype."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for same in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        _exchange(dist.all_reduce, flat)
        start = 0
        for tensor in same:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


class _GatherWords(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor, valid: Tensor) -> Tensor:
        ctx.rows, ctx.shape = valid.flatten().nonzero().squeeze(1), W.shape
        own = W.flatten(0, 1).index_select(0, ctx.rows)
        ctx.sizes = _sizes(own)
        return _gather(own, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        own = gradient.new_zeros(ctx.shape)
        own.view(-1, ctx.shape[-1])[ctx.rows] = _reduce_scatter(gradient, ctx.sizes)
        return own, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = _sizes(x)
        ctx.own = slice(sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1]))
        return _gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.own]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        _exchange(dist.all_reduce, gradient)
        return gradient


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    """All ranks' rows: each sends as many as the longest has, since all_gather wants equal shapes."""
    longest = max(sizes)
    sent = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])]).contiguous()
    # bool does not travel on every backend
    carried = sent.to(torch.uint8) if sent.dtype == torch.bool else sent
    received = [torch.empty_like(carried) for _ in sizes]
    _exchange(dist.all_gather, received, carried)
    rows = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    return rows.to(x.dtype)


def _reduce_scatter(x: Tensor, sizes: list[int]) -> Tensor:
    """The sum over ranks of this rank's rows of x, whose rows are all ranks'."""
    longest = max(sizes)
    padded = x.new_zeros(len(sizes), longest, *x.shape[1:])  # as many rows a rank: not every backend takes others
    for place, part in zip(padded, x.split(sizes), strict=True):
        place[: len(part)] = part
    own = x.new_empty(longest, *x.shape[1:])
    _exchange(dist.reduce_scatter_tensor, own, padded.flatten(0, 1))
    return own[: sizes[dist.get_rank()]]


def _exchange(collective: Callable[..., Any], *arguments: Any) -> None:
    with _travelling():
        collective(*arguments)


def _sizes(x: Tensor) -> list[int]:
    """How many rows each rank has."""
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=_device())
    sizes[dist.get_rank()] = x.shape[0]
    _exchange(dist.all_reduce, sizes)
    return sizes.tolist()


def _same_length(x: Tensor) -> Tensor:
    """The tensor with dimension 1 padded to the longest of all ranks."""
    longest = torch.tensor(x.shape[1], dtype=torch.int64, device=_device())
    _exchange(dist.all_reduce, longest, dist.ReduceOp.MAX)
    missing = int(longest) - x.shape[1]
    return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1) if missing else x


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
