"""The precision of a computation, and on a GPU whether the same computation gives the same bits again.

torch has both as settings of the process, whose defaults differ between operations: in float32, cuDNN's convolutions
round their factors to TF32, cuBLAS's products do not. Here each has one name. Computations on a CPU are left as they
are. Needs torch alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

Precision = Literal["float32", "tf32", "bf16", "float64"]

# cuBLAS's products need not have the same bits at each call without a workspace of fixed size. It is read at the first
# product on a GPU.
CUBLAS_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
# Switches of NVLink need not add in the same order at each call. It is read when ranks first communicate.
NCCL_ALGORITHMS = {"NCCL_ALGO": "^NVLS,NVLSTree"}


def effective(precision: Precision, device: str | torch.device) -> Precision:
    """Return the precision that a device computes in: TF32 is a format of GPUs; elsewhere it is float32."""
    return "float32" if precision == "tf32" and not _is_cuda(device) else precision


def weight_type(precision: Precision) -> torch.dtype:
    """Return the type of weights, gradients and losses: float64, or float32 for all other precisions."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(precision: Precision, device: str | torch.device) -> torch.autocast:
    """Return the context of a forward pass: for bf16, autocast over float32 weights.

    Which operations return bfloat16 depends on the kind of device. On CUDA, layer norms and softmax return float32.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def using(precision: Precision, device: str | torch.device, deterministic: bool = True) -> Iterator[None]:
    """Compute in a precision on a device inside the context, forward and backward. On a CPU nothing is set.

    On a GPU, products and convolutions of float32 numbers round their factors to 10 bits for `tf32`, and not at all for
    other precisions; products of bfloat16 numbers are added in float32. This holds in all threads of the process.

    Args:
        deterministic: on a GPU, the same computation gives the same bits at each call, on the same kind of GPU, the
            same libraries and as many ranks. An operator that cannot do so is a RuntimeError. False lets cuDNN choose
            the fastest algorithms.

    Raises:
        RuntimeError: from the first product, if `deterministic` and CUBLAS_WORKSPACE_CONFIG has a value that is not, or
            if the process had computed products on a GPU before.
    """
    if not _is_cuda(device):
        yield
        return
    before = _Flags.of_the_process()
    if deterministic:
        set_environment()
    wanted = "tf32" if precision == "tf32" else "ieee"
    before._replace(
        matmul=wanted,
        convolution=wanted,
        rnn=wanted,
        bf16_sums=False,
        algorithms=(deterministic, False),
        fill_memory=before.fill_memory and not deterministic,
        cudnn_deterministic=deterministic,
        cudnn_benchmark=not deterministic,
        cudnn_attention=before.cudnn_attention and not deterministic,
    ).apply()
    try:
        yield
    finally:
        before.apply()


def set_environment() -> None:
    """Set the environment variables of deterministic libraries, unless they are set; before CUDA and NCCL start."""
    for name, value in (CUBLAS_WORKSPACE | NCCL_ALGORITHMS).items():
        os.environ.setdefault(name, value)


def described(device: str | torch.device) -> dict[str, Any]:
    """Return what decides how numbers are multiplied and added in float32 (`using`) on a kind of device, for keys."""
    if _is_cuda(device):
        return {"device": "cuda", "factors": "ieee"}
    # under the name that torch.set_float32_matmul_precision gives it
    names = {"none": "highest", "ieee": "highest", "tf32": "high", "bf16": "medium"}
    cpu: Any = torch.backends.mkldnn
    return {"device": torch.device(device).type, "matmul": names[cpu.matmul.fp32_precision]}


class _Flags(NamedTuple):
    """torch's settings of the process for GPUs. Those of a CPU (oneDNN) are others.

    Attributes:
        matmul, convolution, rnn: `ieee`, `tf32`, or `none` for torch's default.
        bf16_sums: whether parts of a sum of bfloat16 products may be added in bfloat16.
        algorithms: whether operators must be deterministic, and whether one that cannot only warns.
        fill_memory: whether new memory is filled where operators must be deterministic, which costs time.
        cudnn_deterministic: whether cuDNN chooses among deterministic algorithms.
        cudnn_benchmark: whether cuDNN chooses the fastest algorithm of those that it has tried.
        cudnn_attention: whether attention may be cuDNN's, whose backward pass is not deterministic.
    """

    matmul: str
    convolution: str
    rnn: str
    bf16_sums: bool
    algorithms: tuple[bool, bool]
    fill_memory: bool
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    cudnn_attention: bool

    @staticmethod
    def of_the_process() -> _Flags:
        cuda, cudnn = _backends()
        return _Flags(
            cuda.matmul.fp32_precision,
            cudnn.conv.fp32_precision,
            cudnn.rnn.fp32_precision,
            cuda.matmul.allow_bf16_reduced_precision_reduction,
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
            _memory().fill_uninitialized_memory,
            cudnn.deterministic,
            cudnn.benchmark,
            cuda.cudnn_sdp_enabled(),
        )

    def apply(self) -> None:
        cuda, cudnn = _backends()
        # by their former names first: where both disagree, reading a former one raises, and torch.compile reads them
        cuda.matmul.allow_tf32 = self.matmul == "tf32"
        cudnn.allow_tf32 = self.convolution == "tf32"
        cuda.matmul.fp32_precision = self.matmul
        cudnn.conv.fp32_precision = self.convolution
        cudnn.rnn.fp32_precision = self.rnn
        cuda.matmul.allow_bf16_reduced_precision_reduction = self.bf16_sums
        torch.use_deterministic_algorithms(self.algorithms[0], warn_only=self.algorithms[1])
        _memory().fill_uninitialized_memory = self.fill_memory
        cudnn.deterministic, cudnn.benchmark = self.cudnn_deterministic, self.cudnn_benchmark
        cuda.enable_cudnn_sdp(self.cudnn_attention)


def _backends() -> tuple[Any, Any]:
    """Return torch's settings of cuBLAS and of cuDNN, most of which have no declared types."""
    return torch.backends.cuda, torch.backends.cudnn


def _memory() -> Any:
    return torch.utils.deterministic


def _is_cuda(device: str | torch.device) -> bool:
    return torch.device(device).type == "cuda"
