"""Runs a command on a cluster of several hosts on this machine: a head without CPUs, and workers with one CPU each.

`python hosts.py WORKERS FOLDER COMMAND...`: each host has its own network, host name, /dev/shm and Ray folder, and
shares the rest of the file system. While the command runs, a file FOLDER/cut with the name of a worker takes its link
down, and its processes live on; FOLDER/mend brings the links up again. A worker restarts Ray whenever it has ended, as
a service would.

It must be the first process of new network, mount, UTS and PID namespaces, as `apart` of test_kills.py makes them: when
it ends, all processes end with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import ray

HEAD, PORT = "head", 6379
TIMEOUT_SECONDS = 150.0
# Turns a process into a host: its own memory, disk, address and host name (on its loopback, as Debian has it; no DNS).
HOST = """
set -e
mount -t tmpfs tmpfs /dev/shm
mkdir -p "$3/$1"
mount --bind "$3/$1" /mnt
hostname "$1"
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$1" > /mnt/hosts
mount --bind /mnt/hosts /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
ip link set lo up
until ip address add "$2/24" dev wire 2>/dev/null; do sleep 0.05; done
ip link set wire up
shift 3
"""
FOREVER = 'while true; do "$@" || true; sleep 1; done'


def main(workers: int, folder: Path, command: list[str]) -> int:
    """Start the hosts, run the command and return its exit status."""
    if b"apart" not in Path("/proc/1/cmdline").read_bytes().split(b"\0"):
        sys.exit(
            "hosts.py gives its namespaces another name, network and memory: run it within apart() of test_kills.py"
        )
    names = [HEAD, *(f"worker{number}" for number in range(1, workers + 1))]
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}

    ip("link add wire type bridge")  # the bridge is on the head
    subprocess.run(["bash", "-c", HOST, "host", HEAD, addresses[HEAD], folder], check=True)
    options = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
    subprocess.run(start_ray(addresses[HEAD], *options), stdout=subprocess.DEVNULL, check=True)
    os.environ["RAY_ADDRESS"] = f"{addresses[HEAD]}:{PORT}"
    for name in names[1:]:
        options = [f"--address={os.environ['RAY_ADDRESS']}", "--num-cpus=1", "--block"]
        words = [name, addresses[name], str(folder), *start_ray(addresses[name], *options)]
        add_worker(name, ["bash", "-c", HOST + FOREVER, "host", *words])
    wait_for(len(names))

    running = subprocess.Popen(command)
    while running.poll() is None:
        time.sleep(0.1)
        if (folder / "cut").exists():
            name = (folder / "cut").read_text()
            ip(f"link set {name} down")
            (folder / "cut").rename(folder / "cut.happened")
        if (folder / "mend").exists():
            for name in names[1:]:
                ip(f"link set {name} up")
            (folder / "mend").rename(folder / "mend.happened")
    return running.returncode


def add_worker(name: str, command: list[str]) -> None:
    """Run a command in new namespaces, with a link to the bridge."""
    own = subprocess.Popen(["unshare", "--net", "--mount", "--uts", *command], stdout=subprocess.DEVNULL)
    here = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{own.pid}/ns/net").readlink() == here:
        time.sleep(0.02)
    ip(f"link add {name} type veth peer name wire netns {own.pid}")
    ip(f"link set {name} master wire up")


def start_ray(address: str, *options: str) -> list[str]:
    """Returns the command that starts Ray on a host, with its folder on the host's own disk."""
    known = [f"--node-ip-address={address}", "--temp-dir=/mnt/ray", "--object-store-memory=100000000"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *known, *options]


def wait_for(hosts: int) -> None:
    """Wait until so many hosts have joined the cluster."""
    ray.init(log_to_driver=False, logging_level="ERROR")
    until = time.monotonic() + TIMEOUT_SECONDS
    while (alive := sum(node["Alive"] for node in ray.nodes())) < hosts:
        if time.monotonic() > until:
            raise TimeoutError(f"expected {hosts} hosts in the cluster, got {alive} after {TIMEOUT_SECONDS:.0f} s")
        time.sleep(0.2)
    ray.shutdown()


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
