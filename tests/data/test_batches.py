"""Batches: which of their tensors go to a device."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from groundray.data.batches import Batch, CaptionBatch, SceneGraphBatch, TextBatch

IMAGES = np.zeros((2, 3, 4, 4), dtype=np.uint8)
TOKENS, LENGTHS = np.ones((2, 5), dtype=np.int32), np.array([3, 5])
PLACES = np.array([0, 1])


def test_tensors_that_decide_shapes_stay_on_the_host() -> None:
    ids = ["a", "b"]
    batches: list[Batch] = [
        CaptionBatch.of(ids, IMAGES, TOKENS, LENGTHS),
        TextBatch.of(ids, TOKENS, LENGTHS, TOKENS),
        SceneGraphBatch.of(ids, IMAGES, TOKENS, LENGTHS, PLACES, PLACES, np.array([[0, 1]]), np.array([2])),
    ]
    on_host = [
        {
            name
            for name, value in vars(batch.to("meta")).items()
            if isinstance(value, Tensor) and value.device.type == "cpu"
        }
        for batch in batches
    ]
    assert on_host == [{"attention_mask"}, {"attention_mask", "targets"}, {"attention_mask", "image"}]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
