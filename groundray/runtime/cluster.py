"""Joining a Ray cluster, or starting one on this machine."""

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

PATIENCE_SECONDS = 10.0  # for a cluster to answer


@contextlib.contextmanager
def connect(verbose: bool = False, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Meanwhile this process is connected to Ray: to a connection that it has already, to the cluster at
    `RAY_ADDRESS` (a job has it set), or else to a cluster of this machine that is started for it and ended after it.

    Args:
        verbose: show Ray's own logs.
        num_cpus: of a cluster that is started here (default: what the machine has).
        dashboard: whether a cluster that is started here has one.
    """
    if ray.is_initialized():
        yield
        return
    # else Ray uploads the folder and builds an environment on each worker whenever `uv run` started the driver
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not verbose:
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # where it has been imported before
    options = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := os.environ.get("RAY_ADDRESS"):
        _answers(address)
    else:
        # else Ray leaves one in ~/.ray, and from then on `ray start` wants it of everyone who speaks to its cluster
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # a reading process that pauses for a second would be ended, and starting the next one takes a core for three
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
        options |= {"address": "local", "include_dashboard": dashboard, "num_cpus": num_cpus}
    heard = signal.getsignal(signal.SIGTERM)
    ray.init(**options)
    # Ray puts a handler of its own there, which ends the driver, and its C++ part aborts it three seconds later
    if callable(heard) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, heard)
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raise ConnectionError where nobody listens at HOST:PORT: Ray would end the process, after pages of its own."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # such as `auto`, which Ray looks for itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"RAY_ADDRESS: expected a Ray cluster at {address}, got {error.strerror or error}: start one with "
            "`ray start --head`, or unset RAY_ADDRESS to start one for this run alone"
        ) from None
