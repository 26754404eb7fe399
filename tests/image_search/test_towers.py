"""The towers on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pretend_gpu import PretendGpu
from search_fixtures import SearchPaths

from groundray.image_search import towers
from groundray.image_search.towers import RetrievalTowers


def test_vectors_are_computed_in_float32_on_a_gpu(place: SearchPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    seen: list[Any] = []
    for name in ("image_vectors", "text_vectors"):
        plain = getattr(towers, name)

        def recorded(*arguments: Any, plain: Any = plain) -> Any:
            seen.append((torch.backends.cuda.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()))
            return plain(*arguments)

        monkeypatch.setattr(towers, name, recorded)
    loaded = RetrievalTowers.load(place.checkpoint)
    pixels = np.zeros((1, 3, loaded.crop.crop, loaded.crop.crop), np.uint8)
    expected = loaded.embed_pixels(pixels), loaded.embed_texts(["circle"])
    seen.clear()
    with PretendGpu():
        on_gpu = loaded.to("cuda")
        found = on_gpu.embed_pixels(pixels), on_gpu.embed_texts(["circle"])
    assert seen == [("ieee", True)] * 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
