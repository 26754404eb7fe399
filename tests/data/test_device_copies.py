"""Batches on the device that trains."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from pretend_gpu import PretendGpu

from groundray.data.batches import CaptionBatch
from groundray.data.device_copies import on_device
from groundray.data.stream import Step


def step(number: int, images: np.ndarray) -> Step:
    lengths = np.array([3, 5], np.int32)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8) + number
    return Step(0, number, False, ((0, CaptionBatch.of(["a", "b"], images, tokens, lengths)),))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_batches_share_the_memory_of_their_arrays_and_clones_do_not(kind: type) -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=kind).reshape(2, 3, 4, 4)
    images.flags.writeable = False  # as Ray's shared memory
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((_, batch),) = step(0, images).chunks
        ((_, own),) = step(0, images).cloned().chunks
    assert batch.images.data_ptr() == images.ctypes.data
    assert own.images.data_ptr() != images.ctypes.data
    assert torch.equal(own.images, batch.images)
    own.images.zero_()
    assert images.any()
    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]]
    assert batch.attention_mask.sum(dim=1).tolist() == [3, 5]


def test_a_step_stays_what_it_is_on_a_cpu() -> None:
    steps = [step(number, np.zeros((2, 3, 4, 4), np.uint8)) for number in range(3)]
    assert all(found is given for found, given in zip(on_device(iter(steps), "cpu"), steps, strict=True))


def test_copies_to_a_gpu_go_through_pinned_memory_and_do_not_wait() -> None:
    images = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    images.flags.writeable = False
    with PretendGpu() as gpu:
        for placed in on_device(iter([step(0, images), step(1, images)]), "cuda"):
            ((_, batch),) = placed.chunks
            assert batch.images.is_cuda
            assert batch.tokens.is_cuda
        assert (gpu.waits.total(), gpu.pageable.total()) == (0, 0)
    assert np.array_equal(batch.images.numpy(), images)
