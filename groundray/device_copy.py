"""Copies from the host to a device.

What decides the shapes of tensors, such as attention masks, stays on the host: read from a GPU, it would make the host
wait until the GPU has done all that was asked of it before. What is computed from it is then copied to the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, without a wait of the host if it is on the host or on that device.

    For a GPU the tensor is copied into pinned memory first, as a copy of pageable memory may wait for the device.
    """
    if x.device == device:
        return x
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
