"""How Ray Train (2.60) starts and ends a group of workers: its backends of torch.distributed, their environment, and
fixes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig

from groundray.runtime import compat

INTERFACE = "GLOO_SOCKET_IFNAME"
GROUP = "GROUNDRAY_WORKER_GROUP"  # when the worker group started, in ns since 1970
PASSED_ON = ("NCCL_", "TORCH_NCCL_", "TORCH_FR_")  # variables of the driver that its workers get
RECORDED_COLLECTIVES = 2000
SIOCGIFADDR = 0x8915  # Linux: get the address of an interface
NAME_BYTES, ADDRESS_OFFSET = 16, 20  # in the request's `struct ifreq`


class PartialGroupCleanup(compat.WorkerGroupCallback, compat.ControllerCallback):
    """Shuts down a group of workers that failed before it was complete. Ray forgets such a group, whose placement group
    then keeps its resources: on a cluster without others, the next attempt would wait for them forever.

    Must be the first of the callbacks.
    """

    def __init__(self) -> None:
        self._starting: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._starting = worker_group  # the workers exist; torch's process group does not yet

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._starting = None

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        partial, self._starting = self._starting, None
        if partial is not None:
            partial.shutdown()


class NodeTorchConfig(TorchConfig):
    """A `TorchConfig` whose workers use the network interface of their node's address, and record their collectives."""

    @property
    def backend_cls(self) -> type[compat.TorchBackend]:
        return _Backend


class _Backend(compat.TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(set_gloo_interface)
        worker_group.execute(set_environment, str(time.time_ns()), backend_config.timeout_s)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        # the only kind of worker death that Ray reports as an error of the shutdown
        with contextlib.suppress(OutOfMemoryError):
            super().on_shutdown(worker_group, backend_config)


def set_environment(group: str, timeout_s: int) -> None:
    """Set this worker's environment variables for torch.distributed, unless they are set.

    torch records the last collectives of each rank. After `timeout_s` in one of them, NCCL's watchdog writes the record
    and ends the process, if groundray's has not (`training/watchdog.py`). NCCL's monitor of its own watchdog gets the
    same limit: its default of 8 minutes would come before `scaling.hang_minutes`.
    """
    os.environ[GROUP] = group
    for name, value in {
        "TORCH_FR_BUFFER_SIZE": RECORDED_COLLECTIVES,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": 1,
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": timeout_s,
    }.items():
        os.environ.setdefault(name, str(value))


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of NCCL and torch.distributed of a driver's environment, for its workers."""
    return {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}


def set_gloo_interface() -> None:
    """Make gloo use the interface with this node's address in Ray, unless `GLOO_SOCKET_IFNAME` is set.

    By default gloo resolves the machine's host name, which often is a loopback address (127.0.1.1 on Debian): other
    workers would then look for this one on their own machines.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface and interface != "lo":
        os.environ.setdefault(INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine with an IPv4 address, or None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[: NAME_BYTES - 1])
            with contextlib.suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(connection.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[ADDRESS_OFFSET : ADDRESS_OFFSET + 4]) == address:
                    return name
    return None
