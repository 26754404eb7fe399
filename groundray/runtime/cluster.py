"""Connects this process to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator

import ray

CONNECT_SECONDS = 10.0  # timeout of the check that a cluster answers


@contextlib.contextmanager
def connect(verbose: bool = False, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Connect this process to Ray inside the context.

    An existing connection is used as it is. Otherwise the process connects to the cluster at `RAY_ADDRESS`, which Ray
    sets in a job. Without it, a cluster is started on this machine, and stopped at the end of the context.

    Args:
        verbose: show Ray's own logs.
        num_cpus: number of CPUs of a cluster that is started here; None for those of the machine.
        dashboard: start the dashboard of a cluster that is started here.

    Raises:
        ConnectionError: nothing listens at `RAY_ADDRESS`.
    """
    if ray.is_initialized():
        yield
        return
    # under `uv run` Ray would upload the working folder and build an environment on each worker
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not verbose:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # if ray.data is imported already
    options = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        _check_answers(address)
    else:
        # Ray would write a token to ~/.ray, which `ray start` would then require of every client of its clusters
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # keeps idle processes for a minute instead of a second: starting one takes a core for three seconds
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
        options |= {"address": "local", "include_dashboard": dashboard, "num_cpus": num_cpus}
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    # Ray installs its own SIGTERM handler, which ends the driver; its C++ part aborts the process three seconds later
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise ConnectionError if nothing listens at HOST:PORT. Ray would print pages and end the process."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # such as `auto`, which Ray resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"RAY_ADDRESS: expected a Ray cluster at {address}, got {error.strerror or error}: start one with "
            "`ray start --head`, or unset RAY_ADDRESS to start one for this run alone"
        ) from None
