"""Runs a command on a cluster of several nodes on this machine: a head without CPUs, and nodes with one CPU each.

`python nodes.py NODES FOLDER COMMAND...`: while it runs, a file FOLDER/shrink removes a node, FOLDER/grow adds one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster


def main(nodes: int, folder: Path, command: list[str]) -> int:
    """Start the cluster, run the command and return its exit status."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    others = [cluster.add_node(num_cpus=1) for _ in range(nodes)]
    running = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address})
    while running.poll() is None:
        time.sleep(0.2)
        if (folder / "shrink").exists():
            (folder / "shrink").unlink()
            cluster.remove_node(others.pop(), allow_graceful=False)
        if (folder / "grow").exists():
            (folder / "grow").unlink()
            others.append(cluster.add_node(num_cpus=1))
    return running.returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
