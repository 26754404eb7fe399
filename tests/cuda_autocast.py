"""Tensors that PyTorch takes for a GPU's, so that CUDA's own lists of autocast apply to them, without a GPU.

    with cuda_autocast():
        encode(stage, claimed_on_cuda(model), batch.map(ClaimsCuda))

`pretend_gpu.py` runs whole trainings on a device that Python's code takes for a GPU, but autocast is C++: there it has
a CPU's lists. Here C++ sees `cuda:0` too. All numbers are computed on the CPU. Forward passes only: without a driver,
autograd refuses a backward pass on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
aten = torch.ops.aten
TAKES_BOTH = {aten.copy_.default, aten.index.Tensor, aten.index_put.default}


class ClaimsCuda(Tensor):
    """A tensor that is said to be on `cuda:0`, around one on the CPU that holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> ClaimsCuda:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed_on_cpu(func, args, dict(kwargs or {}))

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        # the copy that is_contiguous() denies must be one of this class
        return self if self.is_contiguous(memory_format=memory_format) else self.clone(memory_format=memory_format)


def computed_on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation, whose result is said to be on a GPU if a tensor is, or the `device` that it names."""
    tensors = [x for x in trees.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    claims = [isinstance(x, ClaimsCuda) for x in tensors]
    if any(claims) and func not in TAKES_BOTH and func.namespace != "groundray":
        others = [tuple(x.shape) for x, claimed in zip(tensors, claims, strict=True) if not claimed and x.dim()]
        assert not others, f"{func}: expected all tensors on cuda:0, got {others} on cpu"
    device = kwargs.get("device")
    if device is not None:
        kwargs["device"] = CPU
    on_gpu = any(claims) if device is None else torch.device(device).type == "cuda"
    args, kwargs = trees.tree_map_only(ClaimsCuda, lambda x: x.inner, (args, kwargs))
    result = func(*args, **kwargs)
    return trees.tree_map_only(Tensor, ClaimsCuda, result) if on_gpu else result


class _Factories(TorchDispatchMode):
    """Makes tensors that are asked for on `cuda`: no argument of theirs is a tensor that claims to be there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed_on_cpu(func, args, dict(kwargs or {}))


def claimed_on_cuda(model: nn.Module) -> nn.Module:
    """Replace all parameters and buffers of a model by tensors that claim to be on a GPU, and return it."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                claimed = ClaimsCuda(parameter.data)
                module._parameters[name] = nn.Parameter(claimed, requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = ClaimsCuda(buffer)
    return model


@contextlib.contextmanager
def cuda_autocast() -> Iterator[None]:
    """Let autocast of `cuda` be enabled without a driver, and tensors be made there, inside the context."""
    torch._C._ensureCUDADeviceGuardSet()  # pyright: ignore[reportAttributeAccessIssue]
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda._lazy_init"),
        mock.patch("torch.Tensor.pin_memory", lambda x: x),
        _Factories(),
    ):
        yield
