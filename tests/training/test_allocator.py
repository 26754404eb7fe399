"""Environment variables of processes that train."""

from __future__ import annotations

import pytest
import torch

from groundray.training import allocator


def test_gpu_memory_is_of_segments_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = allocator.CUDA_ENVIRONMENT
    monkeypatch.delenv(name, raising=False)
    assert allocator.environment(use_gpu=False) == allocator.ENVIRONMENT
    added = dict(allocator.environment(use_gpu=True).items() - allocator.ENVIRONMENT.items())
    assert added == {name: "expandable_segments:True"}
    torch._C._accelerator_setAllocatorSettings(added[name])  # raises on a key that it does not know
    monkeypatch.setenv(name, "max_split_size_mb:64")
    assert allocator.environment(use_gpu=True)[name] == "max_split_size_mb:64"
