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
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S as SHUTDOWN_SECONDS

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


@dataclass(frozen=True)
class NodeTorchConfig(BackendConfig):
    """A backend of torch.distributed whose workers use the network interface of their node's address, and record their
    collectives.

    The run's controller, which starts them, does not load torch. With `ray.train.torch.TorchConfig` (2.60) it does:
    before the first worker starts that takes seconds, and .7 GB of its memory from then on.

    Args:
        backend: as of `torch.distributed.init_process_group`.
        timeout_s: of a collective.
    """

    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend

    @property
    def train_func_context(self) -> Any:
        """The context of the training function, which makes the worker's GPU the current one."""
        from ray.train.torch import TorchConfig

        return TorchConfig().train_func_context

    @property
    def framework(self) -> Any:
        return compat.TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Backend(Backend):
    share_cuda_visible_devices = True  # workers of a node reach each other's GPUs

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        addresses = worker_group.execute(prepare, str(time.time_ns()), backend_config.timeout_s)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, join, backend_config, rank, size, *addresses[0])
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        seconds = int(os.environ.get(SHUTDOWN_SECONDS) or DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
        # out of memory is the only kind of worker death that Ray reports as an error of the shutdown
        with contextlib.suppress(OutOfMemoryError, GetTimeoutError):
            ray.get(worker_group.execute_async(leave, len(worker_group) > 1), timeout=seconds)


def prepare(group: str, timeout_s: int) -> tuple[str, int]:
    """Set this worker's environment and load torch. Return the worker's address, and a port of it that is free."""
    set_gloo_interface()
    set_environment(group, timeout_s)
    compat.load("set_torch_environment")()
    return compat.load("get_address_and_port")()


def join(config: NodeTorchConfig, rank: int, size: int, address: str, port: int) -> None:
    """Join the process group of torch.distributed whose rank 0 listens at an address and port."""
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    compat.load("join_process_group")(config.backend, rank, size, "env://", config.timeout_s)


def leave(destroy: bool) -> None:
    """Free the GPU's memory, and leave the process group."""
    compat.load("leave_process_group")(destroy_process_group=destroy)


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
