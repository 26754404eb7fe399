"""How a group of workers begins and ends, where what Ray does is not enough (Ray 2.60)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig

from groundray.runtime import compat

INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the address of an interface
NAME_BYTES, ADDRESS_AT = 16, 20  # in what it takes and gives


class PartialGroupCleanup(compat.WorkerGroupCallback, compat.ControllerCallback):
    """Takes apart a group of workers that has failed before it was complete. Ray forgets it and the places that it
    holds: where the cluster has no others, the next one would wait for them for ever. To be the first of callbacks."""

    def __init__(self) -> None:
        self._beginning: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._beginning = worker_group  # there are workers now; the process group is yet to come

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._beginning = None

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        left, self._beginning = self._beginning, None
        if left is not None:
            left.shutdown()


class NodeTorchConfig(TorchConfig):
    """Torch's process group of the workers."""

    @property
    def backend_cls(self) -> type[compat.TorchBackend]:
        return _Backend


class _Backend(compat.TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(set_gloo_interface)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        # of all the ways in which a worker may have died, this is the one that Ray takes for an error of the run
        with contextlib.suppress(OutOfMemoryError):
            super().on_shutdown(worker_group, backend_config)


def set_gloo_interface() -> None:
    """Have gloo use the interface by which Ray knows this machine, unless told otherwise.

    It would ask what the machine's own name means, which on many is the loopback (Debian writes 127.0.1.1), and others
    would look for this worker on themselves.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface and interface != "lo":
        os.environ.setdefault(INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has an IPv4 address; None where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[: NAME_BYTES - 1])
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[ADDRESS_AT : ADDRESS_AT + 4]) == address:
                    return name
    return None
