"""Filling a module with weights, strictly: what is missing, unexpected or of another shape is named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

SHOWN = 4


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
