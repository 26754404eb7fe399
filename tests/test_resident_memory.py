"""The peak of resident memory is that of the process alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from groundray.resident_memory import peak_resident

CHILD = "from groundray.resident_memory import peak_resident; print(peak_resident())"


@pytest.mark.thorough
def test_memory_that_was_freed_counts() -> None:
    before = peak_resident()
    ballast = np.ones(before // 8 + 2**24)  # as much again and 128 MB
    del ballast
    assert peak_resident() >= before + 2**27


def test_a_small_program_does_not_inherit_the_peak_of_a_large_one() -> None:
    ballast = np.ones(2**26)  # 512 MB
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < ballast.nbytes
