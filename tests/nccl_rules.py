"""NCCL's rules for collectives, checked on gloo ranks.

NCCL checks little itself: ranks that break a rule hang, end with an error of CUDA, or receive wrong numbers.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as trees

from groundray import distributed

CHECKED = ("all_reduce", "all_gather", "reduce_scatter_tensor")
UNCHECKED = ("all_gather_into_tensor", "all_to_all", "all_to_all_single", "barrier", "broadcast", "reduce", "scatter")
TYPES = {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}
TYPES |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class BrokenRule(AssertionError):
    """A collective that NCCL would not do, or not as meant."""


@contextlib.contextmanager
def nccl_rules() -> Iterator[list[str]]:
    """Check each collective of `groundray.distributed` inside the context. Every rank enters it.

    Before a collective begins, ranks compare what they are about to do: the same collective, on tensors of the same
    type and shape. A rank's own tensors are contiguous, on one device, of one type that NCCL sends.

    Yields:
        Descriptions of the collectives so far.

    Raises:
        BrokenRule: on every rank; the message has the call of each.
    """
    log: list[str] = []
    group: Any = dist.new_group(backend="gloo")
    real = {name: getattr(dist, name) for name in (*CHECKED, *UNCHECKED)}

    def check(name: str, *arguments: Any, **options: Any) -> Any:
        call = describe(name, *arguments, **options)
        calls: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(calls, (call, own_fault(name, *arguments)), group)
        if any(fault for _, fault in calls) or len({call for call, _ in calls}) > 1:
            told = "".join(f"\n  rank {rank}: {call}  {fault}" for rank, (call, fault) in enumerate(calls))
            raise BrokenRule(f"{name} at {_caller()}, after {len(log)} others:{told}")
        log.append(call)
        return real[name](*arguments, **options)

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise BrokenRule(f"{name} at {_caller()}: expected one of {', '.join(CHECKED)}, or its rule in {__file__}")

    for name in CHECKED:
        setattr(dist, name, functools.partial(check, name))
    for name in UNCHECKED:
        setattr(dist, name, functools.partial(refuse, name))
    try:
        yield log
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def describe(name: str, *arguments: Any, **options: Any) -> str:
    """Return what ranks must agree on: the collective, type, shape and device of its tensors, its other arguments."""
    described = [
        f"{str(x.dtype)[6:]}{list(x.shape)}{'' if x.device.type == 'cpu' else f' on {x.device.type}'}"
        if isinstance(x, Tensor)
        else str(x)
        for x in trees.tree_leaves((arguments, options))
    ]
    return f"{name}({', '.join(described)})"


def own_fault(name: str, *arguments: Any) -> str:
    """Return the rule that a rank's tensors break by themselves, or an empty string."""
    tensors = [x for x in trees.tree_leaves(arguments) if isinstance(x, Tensor)]
    if len({x.device for x in tensors}) > 1:
        return "tensors on several devices"
    if len({x.dtype for x in tensors}) > 1:
        return "tensors of several types"
    if not {x.dtype for x in tensors} <= TYPES:
        return "a type that NCCL does not send"
    if not all(x.is_contiguous() for x in tensors):
        return "a tensor that is not contiguous"
    sizes = [x.numel() for x in tensors]
    if name == "all_gather" and (len(set(sizes)) > 1 or len(sizes) != 1 + dist.get_world_size()):
        return "expected a tensor for each rank, of the shape of this rank's"
    if name == "reduce_scatter_tensor" and sizes[1] != sizes[0] * dist.get_world_size():
        return "expected an input with a part of the output's size for each rank"
    return ""


def _caller() -> str:
    """Return the function of `groundray` that calls a collective."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename != distributed.__file__:
        frame = frame.f_back
    while frame.f_back and frame.f_code.co_name in ("_run", "_all_gather"):
        frame = frame.f_back
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"
