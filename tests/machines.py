"""Where the tests in `tests/gpu` compute: on a real GPU (`make gpu`), and in `make thorough`, so that the tests
themselves are tested, on the CPU and on the pretend GPU."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from pretend_gpu import PretendGpu

from groundray import arithmetic

# warnings of other versions of CUDA's libraries are no failures
GPU = pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.filterwarnings("default")])


@dataclass(frozen=True)
class Machine:
    """Where a test computes.

    Attributes:
        device: `cpu` or `cuda`.
        large: whether it is a real GPU, which gets the sizes that it is made for.
    """

    device: str
    large: bool
    pretend: PretendGpu | None = None

    def host_waits(self, work: Callable[[], object]) -> Counter[str]:
        """Return how often the host waits for the GPU in some work, and where as far as that is known."""
        if self.pretend:
            self.pretend.reset()
            work()
            return Counter(self.pretend.waits)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        told = [warning for warning in found if "synchronizing CUDA operation" in str(warning.message)]
        return Counter(f"{warning.filename}:{warning.lineno}" for warning in told)


EVERYWHERE = pytest.mark.parametrize("machine", ["cpu", "pretend", GPU], indirect=True)
GPUS = pytest.mark.parametrize("machine", ["pretend", GPU], indirect=True)
ON_A_GPU = [pytest.mark.parametrize("machine", [GPU], indirect=True), pytest.mark.usefixtures("machine")]
REAL = pytest.mark.parametrize("machine", ["cpu", GPU], indirect=True)


@contextlib.contextmanager
def use(name: str) -> Iterator[Machine]:
    """Yield a machine: `cpu`, `pretend` or `gpu`. Without a GPU, the last ends all tests with status 1."""
    if name == "cpu":
        yield Machine("cpu", large=False)
    elif name == "pretend":
        with PretendGpu() as pretend:
            yield Machine("cuda", large=False, pretend=pretend)
    else:
        if not torch.cuda.is_available():
            pytest.exit("expected a CUDA device, found none: run this on a machine with a GPU", returncode=1)
        arithmetic.set_environment()  # before the first product
        yield Machine("cuda", large=True)
        torch.cuda.empty_cache()
