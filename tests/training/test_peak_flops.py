"""Peak rates of GPUs by their exact names."""

from __future__ import annotations

import pytest

from groundray.training.peak_flops import peak_flops


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", (19.5, 156, 312)),
        ("A100-SXM4-40GB", (19.5, 156, 312)),
        ("NVIDIA A100-PCIE-40GB", (19.5, 156, 312)),
        ("NVIDIA A100 80GB PCIe", (19.5, 156, 312)),
        ("NVIDIA H100 80GB HBM3", (67, 494.5, 989.5)),
        ("NVIDIA H100 PCIe", (51, 378, 756)),
        ("NVIDIA H100 NVL", (60, 417.5, 835.5)),
        ("NVIDIA H200", (67, 494.5, 989.5)),
        ("NVIDIA H200 NVL", (60, 417.5, 835.5)),
        ("NVIDIA H20", (44, 74, 148)),
        ("NVIDIA GH200 480GB", (67, 494.5, 989.5)),
        ("NVIDIA B200", (75, 1125, 2250)),
        ("NVIDIA B300 SXM6 AC", (75, 1125, 2250)),
        ("NVIDIA GB200", (80, 1250, 2500)),
        ("NVIDIA L4", (30.3, 60, 121)),
        ("NVIDIA L40", (90.5, 90.5, 181)),
        ("NVIDIA L40S", (91.6, 183, 362)),
        ("NVIDIA A10", (31.2, 62.5, 125)),
        ("Tesla T4", (8.1, None, None)),
        ("Tesla V100-SXM2-32GB", (15.7, None, None)),
        ("Tesla V100-PCIE-16GB", (14, None, None)),
        ("NVIDIA GeForce RTX 4090", (82.6, 82.6, 165.2)),
        ("NVIDIA GeForce RTX 5090", (104.8, 104.8, 209.5)),
        ("NVIDIA RTX 6000 Ada Generation", (91.1, 182.1, 364.2)),
        ("NVIDIA RTX A6000", (38.7, 77.4, 154.8)),
    ],
)
def test_peaks_of_a_gpu(gpu: str, tflops: tuple[float | None, ...]) -> None:
    found = [peak_flops(gpu, precision) for precision in ("float32", "tf32", "bf16")]
    assert found == [peak and pytest.approx(peak * 1e12) for peak in tflops]
    assert peak_flops(gpu, "float64") is None


@pytest.mark.parametrize(
    "gpu",
    [
        "NVIDIA RTX A1000",
        "NVIDIA A100X",
        "NVIDIA A10G",
        "NVIDIA A16",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "Quadro RTX 6000",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "a GPU of next year",
    ],
)
def test_a_gpu_with_a_similar_name_has_no_known_peak(gpu: str) -> None:
    assert peak_flops(gpu, "bf16") is None
