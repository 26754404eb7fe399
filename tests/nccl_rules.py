"""NCCL's rules for collectives, checked on gloo ranks, on CPUs or on pretend GPUs.

NCCL checks little itself: ranks that break a rule hang, end with an error of CUDA, or receive wrong numbers.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import _disable_current_modes

from groundray import distributed

CHECKED = ("all_reduce", "all_gather", "reduce_scatter_tensor", "broadcast")
UNCHECKED = ("all_gather_into_tensor", "all_to_all", "all_to_all_single", "barrier", "reduce", "scatter")
TYPES = {torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64}
TYPES |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class BrokenRule(AssertionError):
    """A collective that NCCL would not do, or not as meant."""


DeviceOf = Callable[[Tensor], str]


def kind_of_device(x: Tensor) -> str:
    """Return the kind of a tensor's device."""
    return x.device.type


@contextlib.contextmanager
def nccl_rules(device_of: DeviceOf = kind_of_device, gloo: str | None = None) -> Iterator[list[str]]:
    """Check each collective of `groundray.distributed` inside the context. Every rank enters it.

    Before a collective begins, ranks compare what they are about to do: the same collective, on tensors of the same
    type, shape and kind of device. A rank's own tensors are contiguous, on one device, of one type that NCCL sends.

    Args:
        device_of: returns the kind of device that a tensor is on.
        gloo: kind of device whose collectives are gloo's, and need not keep the rules of a rank's own tensors; None if
            all are NCCL's, as where ranks on CPUs stand for ranks on GPUs.

    Yields:
        Descriptions of NCCL's collectives so far.

    Raises:
        BrokenRule: on every rank; the message has the call of each.
    """
    log: list[str] = []
    compared = functools.cache(lambda: dist.new_group(backend="gloo"))
    real = {name: getattr(dist, name) for name in (*CHECKED, *UNCHECKED)}

    def check(name: str, *arguments: Any, **options: Any) -> Any:
        call = describe(name, *arguments, device_of=device_of, **options)
        is_gloo = gloo is not None and {device_of(x) for x in _tensors(arguments)} == {gloo}
        fault = "" if is_gloo else own_fault(name, *arguments, device_of=device_of)
        calls: list[Any] = [None] * dist.get_world_size()
        with _disable_current_modes(), torch._C.DisableTorchFunction():  # a pretend GPU counts no work of these checks
            dist.all_gather_object(calls, (call, fault), compared())
        if any(fault for _, fault in calls) or len({call for call, _ in calls}) > 1:
            told = "".join(f"\n  rank {rank}: {call}  {fault}" for rank, (call, fault) in enumerate(calls))
            raise BrokenRule(f"{name} at {_caller()}, after {len(log)} others:{told}")
        if not is_gloo:
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


def describe(name: str, *arguments: Any, device_of: DeviceOf, **options: Any) -> str:
    """Return what ranks must agree on: the collective, type, shape and device of its tensors, its other arguments."""
    described = [
        f"{str(x.dtype)[6:]}{list(x.shape)}{'' if device_of(x) == 'cpu' else f' on {device_of(x)}'}"
        if isinstance(x, Tensor)
        else str(x)
        for x in trees.tree_leaves((arguments, options))
    ]
    return f"{name}({', '.join(described)})"


def own_fault(name: str, *arguments: Any, device_of: DeviceOf) -> str:
    """Return the rule that a rank's tensors break by themselves, or an empty string."""
    tensors = _tensors(arguments)
    if len({device_of(x) for x in tensors}) > 1:
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


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in trees.tree_leaves(tree) if isinstance(x, Tensor)]


def _caller() -> str:
    """Return the function of `groundray` that calls a collective."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename != distributed.__file__:
        frame = frame.f_back
    while frame.f_back and frame.f_code.co_name in ("_run", "_all_gather"):
        frame = frame.f_back
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno})"
