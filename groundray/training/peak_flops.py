"""Peak operations per second of GPUs, from the vendor's data sheets, by the device names that the driver gives."""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = re.compile(r"NVIDIA |Tesla |GeForce |Quadro ")


class Peaks(NamedTuple):
    """Dense operations per second, in 10^12: without tensor cores, and with them in TF32 and in bfloat16 with float32
    accumulation. None where the chip has no such unit."""

    float32: float
    tf32: float | None = None
    bf16: float | None = None


# Data sheets that give rates with sparsity give twice the dense ones. A name must match as a whole: an L40 is no L4, an
# H100 PCIe no H100 SXM, an RTX A1000 no A100, and a MIG slice is none of them.
PEAKS: dict[str, Peaks] = {
    r"GB[23]00": Peaks(80, 1250, 2500),
    r"B200|B300( SXM6 AC)?": Peaks(75, 1125, 2250),
    r"H200|H[18]00 80GB HBM3|H[18]00 SXM5|GH200 (120|144G|480)(GB)?( HBM3e?)?": Peaks(67, 494.5, 989.5),
    r"H100 PCIe|H800 PCIe": Peaks(51, 378, 756),
    r"H100 NVL|H200 NVL": Peaks(60, 417.5, 835.5),
    r"H20(-3e)?": Peaks(44, 74, 148),
    r"A[18]00-(SXM4?|PCIE)-\d\dGB|A[18]00 80GB PCIe": Peaks(19.5, 156, 312),
    r"A30": Peaks(10.3, 82, 165),
    r"A40": Peaks(37.4, 74.8, 149.7),
    r"A10": Peaks(31.2, 62.5, 125),
    r"L4": Peaks(30.3, 60, 121),
    r"L40": Peaks(90.5, 90.5, 181),
    r"L40S": Peaks(91.6, 183, 362),
    r"T4": Peaks(8.1),
    r"V100-SXM\d-\d\dGB": Peaks(15.7),
    r"V100-PCIE-\d\dGB": Peaks(14),
    r"V100S-PCIE-32GB": Peaks(16.4),
    r"RTX 5090": Peaks(104.8, 104.8, 209.5),
    r"RTX 4090": Peaks(82.6, 82.6, 165.2),
    r"RTX 3090": Peaks(35.6, 35.6, 71),
    r"RTX 6000 Ada Generation": Peaks(91.1, 182.1, 364.2),
    r"RTX A6000": Peaks(38.7, 77.4, 154.8),
    r"RTX A5000": Peaks(27.8, 55.6, 111.1),
}


def peak_flops(gpu: str, precision: str) -> float | None:
    """Return a GPU's peak operations per second in a precision: `float32`, `tf32` or `bf16`; None if unknown.

    Args:
        gpu: the device's name, as `torch.cuda.get_device_name` gives it.
    """
    name = gpu
    while PREFIX.match(name):
        name = PREFIX.sub("", name, count=1)
    for pattern, peaks in PEAKS.items():
        if re.fullmatch(pattern, name):
            peak: float | None = peaks._asdict().get(precision)
            return peak and peak * 1e12
    return None
