"""The rate of one large matrix product: what a device reaches at best, measured."""

from __future__ import annotations

import statistics

import torch
from torch.utils.benchmark import timer

SIDES = {"cpu": 1024, "cuda": 8192}
WARM_UPS, REPEATS = 3, 9


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Return the multiplications and additions per second of a product of square matrices of random numbers.

    The precision in force (`arithmetic.using`) holds for it too.
    """
    side = SIDES[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    taken = []
    for _ in range(WARM_UPS + REPEATS):
        start = timer()  # waits for the device
        torch.mm(a, b, out=product)
        taken.append(timer() - start)
    return 2 * side**3 / statistics.median(taken[WARM_UPS:])
