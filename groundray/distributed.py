"""World size, barrier, gathers and reductions over torch.distributed's default group.

At world size 1 each of them is the identity, and nothing needs to be initialised.

On GPUs the group has two backends (`GPU_BACKENDS`), and the tensor decides between them. NCCL carries what is computed;
its collectives only enqueue work on the device, and the host goes on. Gloo carries numbers and strings of the host: its
collectives return when they have ended, and wait for no device. So whatever the host must know of other ranks is
exchanged as tensors on the CPU.

One process and many agree by this convention: every rank computes the same global loss, and the gradient of a
parameter is the *sum over ranks* of what backward leaves on each of them. The backward pass of each gather follows
from it.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch._C import _distributed_c10d as c10d
from torch.nn import functional as F

from groundray.device_copy import to_device

GPU_BACKENDS = "cpu:gloo,cuda:nccl"

Timer = Callable[[], AbstractContextManager[None]]

_timer: ContextVar[Timer] = ContextVar("communication_timer", default=contextlib.nullcontext)
_begun = 0  # of the process: autograd runs backward passes in threads that share no context


def world_size() -> int:
    """Return the number of ranks; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's rank; 0 where torch.distributed is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


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


def collectives_begun() -> int:
    """Return the number of collectives that this process has begun.

    Ranks begin the same ones in the same order, so the rank that the others wait for has begun fewer than they have.
    That holds on a GPU too, where the host begins a collective and goes on.
    """
    return _begun


def flight_record() -> bytes | None:
    """Return torch's pickled record of this rank's last collectives; None where there are none.

    It is NCCL's, which `torchfrtrace` compares with those of other ranks, or else gloo's.
    """
    if world_size() == 1:
        return None
    nccl: Callable[[], bytes] | None = getattr(c10d, "_dump_nccl_trace", None)  # builds for a CPU lack it
    records = (dump() for dump in (nccl, c10d._dump_fr_trace) if dump)
    return next((record for record in records if pickle.loads(record)["entries"]), None)  # noqa: S301


def barrier() -> None:
    """Wait until every rank has called this function. What is enqueued on devices may still run."""
    on_every_rank(0)


def on_every_rank(*own: int) -> tuple[tuple[int, ...], ...]:
    """Return each number on every rank, in rank order, as soon as every rank has called this function.

    No device is waited for.
    """
    sent = torch.tensor(own, dtype=torch.int64, device="cpu")
    return tuple(zip(*(numbers.tolist() for numbers in _all_gather(sent)), strict=True))


def gather_words(
    W: Float[Tensor, "own_caption token dim"], valid: Bool[Tensor, "own_caption token"]
) -> tuple[Float[Tensor, "word dim"], Bool[Tensor, "caption any_token"]]:
    """Return the words of all ranks as one list, in rank order, and the mask of all captions' tokens.

    Only valid tokens are sent; at world size 1 the list holds all tokens, valid or not. Ranks may hold different
    numbers of captions, also none, padded to different lengths.

    Each rank compares all words with its own images, so the gradient of a rank's words is the sum over ranks. Words of
    half precision are sent as they are and returned in float32, so that their gradient is summed in float32.

    Args:
        valid: on the host, where the masks of all ranks are then exchanged. A mask on a GPU makes the host wait.
    """
    if world_size() == 1:
        return W.flatten(0, 1), valid
    valid = valid.cpu()
    rows = valid.flatten().nonzero().squeeze(1)
    captions, lengths, words = on_every_rank(*valid.shape, len(rows))
    padded = F.pad(valid, (0, max(lengths) - valid.shape[1]))
    return _GatherWords.apply(W, rows, words), _gather(padded, captions)


def gather_rows(x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Return the rows of all ranks, in rank order. Ranks may hold different numbers of rows.

    Each rank computes the same from all rows, so the gradient of a rank's rows is the one it computes itself.

    Args:
        sizes: number of rows on each rank; None to exchange them.
    """
    return x if world_size() == 1 else _GatherRows.apply(x, sizes or _sizes(x))


def sum_gradient_over_ranks(x: Tensor) -> Tensor:
    """Return the tensor, whose gradient is then summed over ranks.

    For a tensor that is equal on all ranks, and from which each rank computes something of its own.
    """
    return x if world_size() == 1 else _SumGradient.apply(x)


def sum_over_chunks(parts: Sequence[Tensor], sizes: Sequence[int] | None = None) -> Tensor:
    """Return the sum over all chunks of the global batch.

    Chunks are added in order, so the result has the same bits on any number of ranks.

    Args:
        parts: one tensor for each of the rank's own chunks, all of the same shape.
        sizes: number of chunks on each rank; None to exchange them.
    """
    return gather_rows(torch.stack(list(parts)), sizes).sum(dim=0)


def gather_strings(text: str) -> list[str]:
    """Return the strings of all ranks, in rank order, as soon as every rank has called this function."""
    if world_size() == 1:
        return [text]
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")
    sizes = _sizes(data)
    return [bytes(part.tolist()).decode() for part in _gather(data, sizes).split(sizes)]


def broadcast(x: Tensor, source: int) -> None:
    """Replace a contiguous tensor by that of one rank, in place. It has the same shape and type on every rank."""
    if world_size() > 1:
        _run(dist.broadcast, x, source)


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over ranks, in place, with one all-reduce for each dtype.

    The tensors are on one device.
    """
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


def start_sum_over_ranks(x: Tensor) -> Callable[[], None]:
    """Start to replace a contiguous tensor by its sum over ranks, in place; return what waits for the sum.

    On a GPU the stream waits for it, and the host goes on.
    """
    global _begun
    _begun += 1
    work = dist.all_reduce(x, async_op=True)

    def wait() -> None:
        work.wait()

    return wait


class _GatherWords(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, W: Tensor, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        rows = to_device(rows, W.device)
        ctx.timer, ctx.rows, ctx.sizes, ctx.shape, ctx.dtype = _timer.get(), rows, sizes, W.shape, W.dtype
        words = _gather(W.flatten(0, 1).index_select(0, rows), sizes)
        return words.to(torch.promote_types(W.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        own = gradient.new_zeros(ctx.shape)
        with timed_by(ctx.timer):
            own.view(-1, ctx.shape[-1])[ctx.rows] = _reduce_scatter(gradient, ctx.sizes)
        return own.to(ctx.dtype), None, None


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.own = slice(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))
        return _gather(x, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own], None


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


def _gather(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return all ranks' rows. Each rank sends as many as the longest has, as all_gather needs equal shapes."""
    longest = max(sizes)
    padded = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])]).contiguous()
    # not every backend sends bool
    received = _all_gather(padded.to(torch.uint8) if padded.dtype == torch.bool else padded)
    rows = torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])
    return rows.to(x.dtype)


def _all_gather(x: Tensor) -> list[Tensor]:
    """Return the tensor of each rank, all of the same shape."""
    if world_size() == 1:
        return [x]
    received = [torch.empty_like(x) for _ in range(world_size())]
    _run(dist.all_gather, received, x)
    return received


def _reduce_scatter(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the sum over ranks of this rank's rows of x, where x holds the rows of all ranks."""
    longest = max(sizes)
    padded = x.new_zeros(len(sizes), longest, *x.shape[1:])  # not every backend takes uneven sizes
    for rows, part in zip(padded, x.split(list(sizes)), strict=True):
        rows[: len(part)] = part
    own = x.new_empty(longest, *x.shape[1:])
    _run(dist.reduce_scatter_tensor, own, padded.flatten(0, 1))
    return own[: sizes[rank()]]


def _run(collective: Callable[..., Any], *arguments: Any) -> None:
    global _begun
    _begun += 1
    with communication():
        collective(*arguments)


def _sizes(x: Tensor) -> list[int]:
    """Return the number of rows on each rank."""
    (sizes,) = on_every_rank(len(x))
    return list(sizes)
