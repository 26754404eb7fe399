"""Loading a module's weights strictly, and fingerprints of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from groundray.storage.seals import Damaged

MAX_NAMES = 4  # in an error


def digest(module: nn.Module) -> str:
    """Return a SHA-256 of a module's parameters and buffers: their names, types, shapes and bits."""
    hashed = hashlib.sha256()
    for name, tensor in sorted({**dict(module.named_buffers()), **module.state_dict()}.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def architecture(configuration: Any) -> dict[str, str]:
    """Return what a configuration of transformers says of a model, for keys: with another activation or number of heads
    the same weights compute other numbers."""
    settings = configuration.to_dict()
    return {name: str(settings[name]) for name in sorted(settings) if not name.startswith("_")}


def read_tensors(file: Path, repair: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Raises:
        Damaged: the file is cut off, or none of this kind; the message names it and the repair.
    """
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise Damaged(str(file), f"it cannot be read ({error})", repair) from None


def misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Return which weights are missing from a state dict, unexpected or of another shape; empty if it fits."""
    return _misfit(module.state_dict(), weights)


def _misfit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    reshaped = [
        f"{name} (expected {_shape(own[name])}, got {_shape(weights[name])})"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:MAX_NAMES])}"
        + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shapes", reshaped))
        if names
    ]
    return "; ".join(problems)


def fill(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict into a module.

    Args:
        origin: where the weights come from, for the error.

    Raises:
        ValueError: weights are missing, unexpected or of another shape; the message lists them.
    """
    check_fit(module, weights, origin)
    module.load_state_dict(dict(weights), strict=True)


def fill_tensors(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], origin: str) -> None:
    """Copy tensors into others of the same names; arguments and errors are those of `fill`."""
    if problem := _misfit(own, weights):
        raise ValueError(f"weights of {origin} do not fit the model: {problem}")
    for name, tensor in own.items():
        tensor.copy_(weights[name])


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Raise ValueError if weights are missing, unexpected or of another shape; the message lists them."""
    if problem := misfit(module, weights):
        raise ValueError(f"weights of {origin} do not fit the model: {problem}")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"
