"""Precision and determinism: torch's settings inside and after `using`, and that those of a CPU are left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch

from groundray import arithmetic, config
from groundray.arithmetic import Precision, autocast, effective, using, weight_type


def flags() -> dict[str, Any]:
    """The settings of the process that a computation's bits depend on."""
    cuda, cudnn, cpu = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    memory: Any = torch.utils.deterministic
    return {
        "products": cuda.matmul.fp32_precision,
        "convolutions": cudnn.conv.fp32_precision,
        "sums of bfloat16": cuda.matmul.allow_bf16_reduced_precision_reduction,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills memory": memory.fill_uninitialized_memory,
        "cudnn deterministic": cudnn.deterministic,
        "cudnn benchmark": cudnn.benchmark,
        "cudnn attention": cuda.cudnn_sdp_enabled(),
        "products on a CPU": cpu.matmul.fp32_precision,
        "convolutions on a CPU": cpu.conv.fp32_precision,
    }


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of cuBLAS or NCCL is set before a test, nor after it."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    before = flags()
    yield
    assert flags() == before


@pytest.mark.parametrize(
    ("precision", "factors"), [("float32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), ("float64", "ieee")]
)
def test_products_and_convolutions_have_the_factors_of_the_precision(precision: Precision, factors: str) -> None:
    with using(precision, "cuda:1"):
        inside = flags()
        assert inside["products"] == inside["convolutions"] == factors
        assert inside["sums of bfloat16"] is False
        # what torch.compile reads: the former names, which raise where they and the present ones disagree
        assert torch.backends.cuda.matmul.allow_tf32 is (factors == "tf32")
        assert torch.backends.cudnn.allow_tf32 is (factors == "tf32")
        assert torch.get_float32_matmul_precision() == ("high" if factors == "tf32" else "highest")


def test_determinism_is_torchs_cudnns_and_attentions() -> None:
    with using("float32", "cuda"):
        inside = flags()
    assert inside["algorithms"] is inside["cudnn deterministic"] is True
    assert inside["only warns"] is inside["fills memory"] is False
    assert inside["cudnn benchmark"] is inside["cudnn attention"] is False
    with using("float32", "cuda", deterministic=False):
        inside = flags()
    assert inside["algorithms"] is inside["cudnn deterministic"] is False
    assert inside["cudnn benchmark"] is inside["cudnn attention"] is True


def test_settings_return_after_nested_contexts_and_errors() -> None:
    def fail() -> None:
        with using("float32", "cuda"):
            assert flags() != outside
            raise KeyError

    with using("tf32", "cuda", deterministic=False):
        outside = flags()
        with pytest.raises(KeyError):
            fail()
        assert flags() == outside


def test_libraries_are_told_before_they_start_unless_the_user_has_told_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with using("float32", "cuda", deterministic=False):
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    with using("float32", "cuda"):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert os.environ["NCCL_ALGO"] == "Ring"


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_cpu_computes_as_before(precision: Precision) -> None:
    before = flags()
    with using(precision, "cpu"):
        assert flags() == before
    with using(precision, "cuda"):
        inside = flags()
    assert {name: inside[name] for name in before if "CPU" in name} == {
        name: value for name, value in before.items() if "CPU" in name
    }
    assert "CUBLAS_WORKSPACE_CONFIG" in os.environ  # by the second context alone


def test_tf32_is_float32_on_a_cpu() -> None:
    assert [effective(precision, "cpu") for precision in get_args(Precision)] == [
        "float32",
        "float32",
        "bf16",
        "float64",
    ]
    assert effective("tf32", "cuda:0") == "tf32"


def test_only_bf16_is_autocast_and_only_float64_has_weights_of_its_own() -> None:
    x = torch.ones(2, 2)
    for precision in get_args(Precision):
        with autocast(precision, "cpu"):
            assert (x @ x).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        assert weight_type(precision) == (torch.float64 if precision == "float64" else torch.float32)


def test_settings_have_the_same_precisions() -> None:
    assert get_args(config.Stage.model_fields["precision"].annotation) == get_args(Precision)
    assert arithmetic.effective(config.Stage(train="t", val="v", batch_size=1).precision, "cuda") == "float32"
