"""A module's weights: filling it with them, strictly, and telling them from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

SHOWN = 4


def digest(module: nn.Module) -> str:
    """The fingerprint of a module: the names, shapes and bits of all that it computes with."""
    found = hashlib.sha256()
    for name, tensor in sorted({**dict(module.named_buffers()), **module.state_dict()}.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def fill(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Give a module exactly these weights.

    Raises:
        ValueError: they are not those of the module; the message says which, and where they come from.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    reshaped = [
        f"{name} ({_shape(weights[name])} there, {_shape(own[name])} here)"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for what, names in (("lacks", missing), ("has unexpected", unexpected), ("has other sizes of", reshaped))
        if names
    ]
    if problems:
        raise ValueError(f"{origin} is not of this model: it {'; it '.join(problems)}")
    module.load_state_dict(dict(weights), strict=True)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
