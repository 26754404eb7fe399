"""Keys of caches: each thing that a cached number depends on changes the key, and nothing else does."""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from groundray import arithmetic
from groundray.arithmetic import using
from groundray.data import transforms
from groundray.storage import cache_key as keys
from groundray.storage.cache_key import cache_key, code_digest, library_versions


def key(inputs: Any = "data", code: Any = (transforms,), device: str = "cpu", stored: str = "bfloat16") -> str:
    return cache_key(inputs, code, device, stored)


def test_threads_make_keys_at_the_same_time() -> None:
    """In Python 3.11 they cannot make syntax trees: one that switches to the other within, here at each collection of
    garbage, raises SystemError."""

    def key_of_new_code(_: int) -> str:
        code_digest.cache_clear()
        return key(code=(transforms, ast))

    def switch(*_: Any) -> None:
        time.sleep(1e-4)

    expected, threshold = key(code=(transforms, ast)), gc.get_threshold()
    gc.callbacks.append(switch)
    gc.set_threshold(50)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert set(threads.map(key_of_new_code, range(8))) == {expected}
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(switch)


def test_key_depends_on_inputs_code_device_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key() == key()
    assert key(device="cuda:0") == key(device="cuda:7")
    found = {key(), key("other"), key(code=(transforms, ast)), key(device="cuda"), key(stored="float32")}
    monkeypatch.setattr(keys, "FORMAT", 99)
    assert len({*found, key()}) == 6


@pytest.mark.parametrize("name", ["torch", "torchvision", "transformers", "pillow"])
def test_key_depends_on_library_versions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = key(), keys.version_of
    monkeypatch.setattr(keys, "version_of", lambda library: "0.0.1" if library == name else version(library))
    assert key() != before


def test_key_depends_on_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(keys.features, "version", lambda name: "0.0.1")
    assert key() != before


def test_key_depends_on_the_arithmetic_that_numbers_are_computed_in() -> None:
    """A CPU computes as torch is set, a GPU in float32 whatever torch's settings are (`arithmetic.using`)."""
    cpu, gpu = key(), key(device="cuda")
    with using("tf32", "cuda", deterministic=False):
        assert (key(), key(device="cuda")) == (cpu, gpu)
    torch.set_float32_matmul_precision("medium")
    try:
        assert key() != cpu
        assert key(device="cuda") == gpu
    finally:
        torch.set_float32_matmul_precision("highest")
    assert key() == cpu


def test_key_of_numbers_computed_on_a_cpu_is_that_of_earlier_versions() -> None:
    depends_on = {
        "format": 1,
        "inputs": "data",
        "code": {transforms.__name__: code_digest(inspect.getsource(transforms))},
        "libraries": library_versions(),
        "arithmetic": {"device": "cpu", "matmul": "highest", "computed": "float32", "stored": "bfloat16"},
    }
    assert key() == hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def test_a_gpus_arithmetic_is_float32_without_rounded_factors() -> None:
    """Keys of earlier versions name TF32, in which their convolutions were computed."""
    assert arithmetic.described("cuda:3") == {"device": "cuda", "factors": "ieee"}


def test_builds_of_a_version_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of a cluster may have a build without CUDA."""
    monkeypatch.setattr(keys, "version_of", lambda name: "2.9.0+cpu")
    cpu = library_versions()
    monkeypatch.setattr(keys, "version_of", lambda name: "2.9.0+cu128")
    assert library_versions() == cpu
    assert cpu["torch"] == "2.9.0"


CODE = """
def area(width):
    return width * width
"""


def test_code_counts_without_comments_and_docstrings() -> None:
    described = CODE.replace("    return", '    """Return the area."""\n\n    # of a square\n    return')
    assert code_digest(described) == code_digest(CODE)
    assert code_digest(CODE.replace("* width", "* 2")) != code_digest(CODE)
