"""A run over several hosts, one of which is cut off during training and reconnected.

The hosts are network namespaces of this machine, joined by a bridge (`hosts.py`): a head with the driver, and two hosts
with a worker each. They share only a file system, which is the run's storage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import SmallWorld
from test_kills import Saboteur, apart, assert_one_whole_run, notes, saboteur_in

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def saboteur(world: SmallWorld, tmp_path: Path) -> Saboteur:
    """Returns a saboteur of runs on hosts; skips where network namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2 for networks of its own: `ip` is not installed")
    if os.geteuid() != 0:
        pytest.skip("needs root for networks of its own")
    namespace = apart("--net", "--uts")
    if not namespace:
        pytest.skip("no network of its own can be made here: `unshare --net --uts --pid --mount` is refused")
    tried = subprocess.run([*namespace, "ip", "link", "add", "wire", "type", "bridge"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no switch can be made here: {tried.stderr.strip()}")
    return saboteur_in(tmp_path, world, "grounding")


def test_run_survives_a_host_that_is_cut_off_and_reconnected(saboteur: Saboteur) -> None:
    """Rank 0's host is cut off while it writes a checkpoint; its processes live on.

    Attempt 2 resumes on the other host from the previous checkpoint. The stale worker then commits its own checkpoint
    to the shared storage; no attempt accepts it. When the link is up again, Ray ends the stale processes, the host
    joins, and the run resumes on both as attempt 3. Weights and samples equal those of an undisturbed run in one
    process.
    """
    words = ("--grounding.epochs=4", "--scaling.chunks=2")
    saboteur.plan(cut=2, mend=3, alone=4.0)
    ran = saboteur.run(*words, "--scaling.num_workers=[1,2]", hosts=2, seconds=700)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
    begun = notes(saboteur)
    assert [note["workers"] for note in begun] == [2, 1, 2]

    assert "note  worker 0 died: its machine 10.77.0." in ran.stdout
    assert "is lost: health check failed due to missing too many heartbeats; the run resumes from" in ran.stdout
    assert begun[1]["checkpoint"].startswith("grounding-00000-000004-a0001-")
    stale = (saboteur.folder / "stale").read_text()
    assert stale == begun[1]["checkpoint"].replace("000004", "000008") + "/manifest.json"
    came_back = (saboteur.folder / "mend.happened").stat().st_mtime
    assert begun[1]["began"] < (saboteur.folder / "stale").stat().st_mtime < came_back < begun[2]["began"]
    assert not any(Path(stale).parent.name in note["accepted"] for note in begun[1:])
    assert begun[2]["ended"] == "resized"
    assert begun[2]["repeated_steps"] == 0
    assert_one_whole_run(saboteur, {"grounding": 36}, attempts=3)

    alone = saboteur.run(*words, "--run.name=alone", "--scaling.num_workers=0", sabotaged=False)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert saboteur.ended() == saboteur.ended("alone")


def test_processes_of_the_hosts_end_with_their_parent(saboteur: Saboteur) -> None:
    saboteur.plan()
    running = saboteur.start("--scaling.num_workers=[1,2]", hosts=2, log=saboteur.folder / "log")
    try:
        namespace = ours = Path("/proc/self/ns/pid").readlink()
        while len(processes_in(namespace)) < 20 or namespace == ours:
            assert running.poll() is None, (saboteur.folder / "log").read_text()
            namespace = Path(f"/proc/{running.pid}/ns/pid_for_children").readlink()
            time.sleep(0.2)
        links = {Path(f"/proc/{one}/ns/net").readlink() for one in processes_in(namespace)}
        assert len(links) == 3
    finally:
        running.kill()
        running.wait()
    until = time.monotonic() + 20
    while (left := processes_in(namespace)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []


def processes_in(namespace: Path) -> list[int]:
    """Returns the processes of a PID namespace."""
    processes = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (folder / "ns" / "pid").readlink() == namespace:
                processes.append(int(folder.name))
    return processes
