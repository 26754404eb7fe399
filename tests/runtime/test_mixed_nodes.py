"""A cluster of nodes with different CPUs beside their GPU and different types of GPU, and of one without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough  # a cluster of its own, of several nodes

SCRIPT = Path(__file__).parent / "mixed_nodes.py"


@pytest.mark.ray
def test_passes_and_workers_get_gpus_and_reading_gets_the_other_cpus(tmp_path: Path) -> None:
    """Tasks of all CPUs divided by their number would fit on no node, and wait forever."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own is too long for sockets
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ADDRESS", None)
        ran = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    placed = json.loads(ran.stdout.splitlines()[-1])
    assert placed["made"] == ["large"]
    assert sorted(placed["workers"]) == ["large", "small"]
    assert set(placed["reading"]) <= {"large", "without"}
    assert placed["reading"]
