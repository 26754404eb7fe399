"""This process's resident memory: its peak, and what of it is freed but not given back."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_resident() -> int:
    """Return the peak of this process's resident memory, in bytes; on Linux, since it was last reset.

    Linux's `ru_maxrss` is not read: a program begins with the peak of the process that started it, which a small
    program started by a large one never exceeds.
    """
    if sys.platform == "linux":
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    kilobytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes


def give_back_freed() -> None:
    """Have the C library give memory that was freed back to the system (glibc only)."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
