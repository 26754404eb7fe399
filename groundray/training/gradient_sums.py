"""Sums of gradients over ranks. On GPUs they begin while the backward pass still runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from groundray.distributed import communication, start_sum_over_ranks, sum_over_ranks, world_size

BUCKET_BYTES = 25 * 2**20  # as in torch's DistributedDataParallel


class GradientSums:
    """Replaces the gradients of parameters by their sums over ranks, in one step.

    On GPUs gradients are summed in buckets, from the last parameter's to the first's. A bucket is started once the
    backward pass has completed it and the buckets before it are started: in the same order on every rank, whichever
    parameters a rank's chunks use. On a CPU all are summed after the backward pass, in one piece: among more than two
    ranks, the order in which gloo adds numbers depends on their place in the piece.

    Args:
        parameters: the trained ones, the same on every rank. One without a gradient gets zeros.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        self._parameters = parameters
        overlaps = world_size() > 1 and parameters[0].is_cuda
        self._buckets = list(_buckets(parameters[::-1])) if overlaps else []
        self._missing = [len(bucket) for bucket in self._buckets]
        self._started: list[tuple[Tensor, Callable[[], None]]] = []

    @contextlib.contextmanager
    def started_by_backward(self) -> Iterator[None]:
        """Start buckets within the context as a backward pass completes them: the last one of the step."""
        handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._complete, index))
            for index, bucket in enumerate(self._buckets)
            for parameter in bucket
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> None:
        """Sum what is not yet summed, and leave the sums in the gradients."""
        if not self._buckets:
            _fill(self._parameters)
            sum_over_ranks(_gradients(self._parameters))
            return
        while len(self._started) < len(self._buckets):
            self._start()
        for bucket, (flat, wait) in zip(self._buckets, self._started, strict=True):
            with communication():
                wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for gradient, part in zip(_gradients(bucket), parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _complete(self, index: int, _: Tensor) -> None:
        """Note that a gradient of a bucket is complete."""
        self._missing[index] -= 1
        while len(self._started) < len(self._buckets) and not self._missing[len(self._started)]:
            self._start()

    def _start(self) -> None:
        """Start to sum the next bucket."""
        bucket = self._buckets[len(self._started)]
        _fill(bucket)
        flat = torch.cat([gradient.flatten() for gradient in _gradients(bucket)])
        self._started.append((flat, start_sum_over_ranks(flat)))


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield runs of parameters of one type, each the fewest that have BUCKET_BYTES together."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        if bucket and (parameter.dtype != bucket[0].dtype or sum(other.nbytes for other in bucket) >= BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket


def _fill(parameters: Sequence[Tensor]) -> None:
    """Give parameters without a gradient zeros: every rank sums the same tensors, whatever its chunks use."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
