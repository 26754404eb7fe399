"""Joining a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_sigterm_comes_to_the_driver_and_leaves_it_time_and_its_cluster_leaves_no_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "heard [15]\n"), ran.stderr
    assert not list(tmp_path.iterdir())
