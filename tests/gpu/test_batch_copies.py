"""Batches are copied to the GPU while it computes, without a wait of the host."""

from __future__ import annotations

import time

import numpy as np
import torch
from machines import GPUS, Machine
from torch import Tensor

from groundray.data.batches import CaptionBatch
from groundray.data.device_copies import on_device
from groundray.data.stream import Step


@GPUS
def test_copies_to_a_gpu_are_right_and_made_without_a_wait(machine: Machine) -> None:
    generator, side = np.random.default_rng(0), 1024 if machine.large else 8
    arrays = [generator.integers(0, 256, (2, 3, side, side), np.uint8) for _ in range(12)]
    tokens, lengths = np.arange(16, dtype=np.int32).reshape(2, 8), np.array([3, 5], np.int32)
    steps = (
        Step(0, number, False, ((0, CaptionBatch.of(["a", "b"], images, tokens + number, lengths)),))
        for number, images in enumerate(arrays)
    )
    busy = torch.ones(4 * side, 4 * side, device=machine.device)
    found: list[tuple[Tensor, Tensor]] = []

    def train() -> None:
        nonlocal busy
        for placed in on_device(steps, machine.device):
            for _ in range(8):  # the caller's stream lags behind the copies
                busy = busy @ busy * 1e-4
            ((_, batch),) = placed.chunks
            found.append((batch.images.clone(), batch.tokens.clone()))
            del placed, batch  # their memory is free for a later copy, once the stream is past the clones
            time.sleep(0.005 if machine.large else 0)

    assert machine.host_waits(train).total() == 0
    for number, (images, copied) in enumerate(found):
        assert np.array_equal(images.cpu().numpy(), arrays[number])
        assert int(copied[0, 0]) == number
    assert len(found) == len(arrays)
