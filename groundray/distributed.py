"""World size, barrier, gathers and reductions over torch.distributed's default group.

At world size 1 each of them is the identity, and nothing needs to be initialised.

One process and many agree by this convention: every rank computes the same global loss, and the gradient of a
parameter is the *sum over ranks* of what backward leaves on each of them. The backward pass of each gather follows
from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

Timer = Callable[[], AbstractContextManager[None]]

_timer: ContextVar[Timer] = ContextVar("communication_timer", default=contextlib.nullcontext)


def world_size() -> int:
    """Return the number of ranks; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def timed_by(timer: Timer) -> Iterator[None]:
    """Run every collective inside the context within a `timer()` of its own, including the wait for the slowest rank.

    The backward pass of a collective is timed by the timer of its forward pass, in whatever thread autograd runs it.
    """
    token = _timer.set(timer)
    try:
        yield
    finally:
        _timer.reset(token)


def communication() -> AbstractContextManager[None]:
    """Return a context in which time is counted as communication by the timer in force (`timed_by`), if any."""
    return _timer.get()()


def barrier() -> None:
    """Wait until every rank has called this function."""
    if world_size() > 1:
        sum_over_ranks([torch.zeros(1, device=_device())])


def gather_words(
    W: Float[Tensor, "own_caption token dim"], valid: Bool[Tensor, "own_caption token"]
) -> tuple[Float[Tensor, "word dim"], Bool[Tensor, "caption any_token"]]:
    """Return the words of all ranks as one list, in rank order, and the mask of all captions' tokens.

    Only valid tokens are sent; at world size 1 the list holds all tokens, valid or not. Ranks may hold different
    numbers of captions, also none, padded to different lengths.

    Each rank compares all words with its own images, so the gradient of a rank's words is the sum over ranks.
    """
    if world_size() == 1:
        return W.flatten(0, 1), valid
    padded = _pad_to_longest(valid)
    return _GatherWords.apply(W, valid), _gather(padded, _sizes(padded))


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order. Ranks may hold different numbers of rows.

    Each rank computes the same from all rows, so the gradient of a rank's rows is the one it computes itself.
    """
    return x if world_size() == 1 else _GatherRows.apply(x)


def sum_gradient_over_ranks(x: Tensor) -> Tensor:
    """Return the tensor, whose gradient is then summed over ranks.

    For a tensor that is equal on all ranks, and from which each rank computes something of its own.
    """
    return x if world_size() == 1 else _SumGradient.apply(x)


def row_offset(x: Tensor) -> int:
    """Return the number of rows on the ranks before this one."""
    return 0 if world_size() == 1 else sum(_sizes(x)[: dist.get_rank()])


def sum_over_chunks(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum over all chunks of the global batch.

    Chunks are added in order, so the result has the same bits on any number of ranks.

    Args:
        parts: one tensor for each of the rank's own chunks, all of the same shape.
    """
    return gather_rows(torch.stack(list(parts))).sum(dim=0)


def gather_strings(text: str) -> list[str]:
    """Return the strings of all ranks, in rank order."""
    if world_size() == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
    data = data.to(_device())
    sizes = _sizes(data)
    return [bytes(part.tolist()).decode() for part in _gather(data, sizes).split(sizes)]


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over ranks, in place, with one all-reduce for each dtype."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        _run(dist.all_reduce, flat)
        start = 0
        for tensor in group:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


class _GatherWords(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor, valid: Tensor) -> Tensor:
        ctx.timer = _timer.get()
        ctx.rows, ctx.shape = valid.flatten().nonzero().squeeze(1), W.shape
        own = W.flatten(0, 1).index_select(0, ctx.rows)
        ctx.sizes = _sizes(own)
        return _gather(own, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        own = gradient.new_zeros(ctx.shape)
        with timed_by(ctx.timer):
            own.view(-1, ctx.shape[-1])[ctx.rows] = _reduce_scatter(gradient, ctx.sizes)
        return own, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = _sizes(x)
        ctx.own = slice(sum(sizes[: dist.get_rank()]), sum(sizes[: dist.get_rank() + 1]))
        return _gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0][ctx.own]


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.timer = _timer.get()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous().clone()
        with timed_by(ctx.timer):
            _run(dist.all_reduce, gradient)
        return gradient


def _gather(x: Tensor, sizes: list[int]) -> Tensor:
    """Return all ranks' rows. Each rank sends as many as the longest has, as all_gather needs equal shapes."""
    longest = max(sizes)
    padded = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])]).contiguous()
    # not every backend sends bool
    sent = padded.to(torch.uint8) if padded.dtype == torch.bool else padded
    received = [torch.empty_like(sent) for _ in sizes]
    _run(dist.all_gather, received, sent)
    rows = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    return rows.to(x.dtype)


def _reduce_scatter(x: Tensor, sizes: list[int]) -> Tensor:
    """Return the sum over ranks of this rank's rows of x, where x holds the rows of all ranks."""
    longest = max(sizes)
    padded = x.new_zeros(len(sizes), longest, *x.shape[1:])  # not every backend takes uneven sizes
    for rows, part in zip(padded, x.split(sizes), strict=True):
        rows[: len(part)] = part
    own = x.new_empty(longest, *x.shape[1:])
    _run(dist.reduce_scatter_tensor, own, padded.flatten(0, 1))
    return own[: sizes[dist.get_rank()]]


def _run(collective: Callable[..., Any], *arguments: Any) -> None:
    with communication():
        collective(*arguments)


def _sizes(x: Tensor) -> list[int]:
    """Return the number of rows on each rank."""
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=_device())
    sizes[dist.get_rank()] = x.shape[0]
    _run(dist.all_reduce, sizes)
    return sizes.tolist()


def _pad_to_longest(x: Tensor) -> Tensor:
    """Return the tensor with dimension 1 padded to the longest of all ranks."""
    longest = torch.tensor(x.shape[1], dtype=torch.int64, device=_device())
    _run(dist.all_reduce, longest, dist.ReduceOp.MAX)
    missing = int(longest) - x.shape[1]
    return torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1) if missing else x


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
