"""Measures the memory that Python allocates in a call."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable


def least_peak(call: Callable[[], object], times: int = 5) -> int:
    """Returns the lowest of the peaks of several calls, in bytes.

    Other threads of the process allocate too. While the call computes, they do not run: Python would switch to them
    only after an hour. They still run whenever the call waits for a file or for arithmetic of a library.
    """
    peaks, interval = [], sys.getswitchinterval()
    for _ in range(times):
        tracemalloc.start()
        sys.setswitchinterval(3600)
        try:
            call()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            sys.setswitchinterval(interval)
            tracemalloc.stop()
    return min(peaks)
