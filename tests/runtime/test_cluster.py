"""Joining a cluster."""

from __future__ import annotations

import subprocess
import sys

# longer than the three seconds after which Ray's C++ part aborts a process that it saw SIGTERM in
DRIVER = """
import os, signal, time
from groundray.runtime import cluster

heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
with cluster.connect(num_cpus=1):
    os.kill(os.getpid(), signal.SIGTERM)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        time.sleep(0.1)
    print("heard", heard)
"""


def test_sigterm_comes_to_the_driver_and_leaves_it_time() -> None:
    ran = subprocess.run([sys.executable, "-c", DRIVER], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, "heard [15]\n"), ran.stderr
