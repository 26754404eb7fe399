"""The grid of a trunk: how many positions its feature map has, and where they lie in the image."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Grid:
    """A square feature map, and where its positions lie in the image.

    Attributes:
        channels: channels of the feature map.
        side: rows, and columns, of the feature map.
        stride: pixels from one position to the next.
        first: pixels from the image's edge to the centre of the first position's receptive field, or of its patch. It
            is half a stride only where the layers pad evenly.
    """

    channels: int
    side: int
    stride: int
    first: float


class NoGrid(ValueError):
    """Raised for layers whose output is no square feature map."""


@dataclass(frozen=True)
class _Reduction:
    """A layer that made a map smaller: rows before and after, and its kernel, stride and padding along a column."""

    before: int
    after: int
    kernel: int
    stride: int
    padding: int


def grid_of(layers: nn.Module, image_size: int) -> Grid:
    """Return the grid of layers on the meta device for square images.

    One pass without numbers notes each convolution and pooling that makes a map smaller. Of those, the chain that leads
    to the last map counts: each moves the centre by half of its kernel less its padding at the top (Dumoulin and Visin
    2016). Maps that other layers make smaller, as where Swin merges patches, are taken to be merged evenly.

    Raises:
        NoGrid: the output is no square feature map.
    """
    reductions: list[_Reduction] = []

    def note(layer: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        before, after = inputs[0].shape[-2], output.shape[-2]
        if after < before:
            kernel, stride, dilation = (_along_column(layer, name) for name in ("kernel_size", "stride", "dilation"))
            kernel = dilation * (kernel - 1) + 1
            needed = max(0, (after - 1) * stride + kernel - before)  # as some layers pad by themselves: more at the end
            padding = _along_column(layer, "padding") or needed // 2
            reductions.append(_Reduction(before, after, kernel, stride, padding))

    kinds = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d
    hooks = [layer.register_forward_hook(note) for layer in layers.modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():
            maps: Any = layers(torch.zeros(1, 3, image_size, image_size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[2] != maps.shape[3]:
        got = " x ".join(map(str, maps.shape[1:])) if isinstance(maps, Tensor) else type(maps).__name__
        raise NoGrid(f"expected a square feature map, channels x rows x columns, got {got}")
    channels, side = maps.shape[1:3]
    stride, centre = 1, 0.5
    for reduction in _chain(reductions, image_size, side):
        centre += stride * ((reduction.kernel - 1) / 2 - reduction.padding)
        stride *= reduction.stride
    return Grid(channels, side, stride, centre)


def _chain(reductions: list[_Reduction], image_size: int, side: int) -> list[_Reduction]:
    """Return the reductions from the image to the last map, with even merges where no layer explains a step."""
    chain, rows = list[_Reduction](), side
    for reduction in reversed(reductions):
        if reduction.after == rows or (reduction.after > rows and not _leads_to(rows, reductions)):
            if reduction.after > rows:
                chain.append(_merge(reduction.after, rows))
            parallel = [
                other for other in reductions if (other.before, other.after) == (reduction.before, reduction.after)
            ]
            chain.append(max(parallel, key=lambda other: other.kernel))  # the receptive field is as wide as the widest
            rows = reduction.before
    if rows < image_size:
        chain.append(_merge(image_size, rows))
    return chain[::-1]


def _leads_to(rows: int, reductions: list[_Reduction]) -> bool:
    return any(reduction.after == rows for reduction in reductions)


def _merge(before: int, after: int) -> _Reduction:
    factor = ceil(before / after)
    return _Reduction(before, after, factor, factor, 0)


def _along_column(layer: Any, name: str) -> int:
    value = getattr(layer, name, 1)
    if isinstance(value, str):  # `valid` and `same`
        return 0
    return value if isinstance(value, int) else int(value[0])
