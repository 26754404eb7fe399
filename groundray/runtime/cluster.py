"""Connects this process to a Ray cluster, or starts one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import ray

from groundray.interrupts import HANG_UP
from groundray.runtime import compat
from groundray.runtime.ray_address import ADDRESS, LOCAL, given_address

CONNECT_SECONDS = 5.0  # timeout of the check that a cluster answers
END_SECONDS = 3.0  # for Ray's processes to end by themselves
FOLDER = "RAY_TMPDIR"
TOKEN_MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DEFAULT_TOKEN_FILE = "~/.ray/auth_token"
SHORT_FOLDER = "/tmp"  # holds Ray's folder where TMPDIR is too long
# the longest path that Ray 2.60 gives a socket, with the process's number, below the folder
SOCKET = "/ray/session_2026-11-28_18-03-54_970112_4194304/sockets/plasma_store"
MAX_FOLDER_BYTES = (103 if sys.platform == "darwin" else 107) - len(SOCKET)


class NoCluster(ConnectionError):
    """There is no cluster to run on; the message gives the repair."""


@contextlib.contextmanager
def connect(verbose: bool = False, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Connect this process to Ray inside the context.

    An existing connection is used as it is. Otherwise the process connects to the cluster at `RAY_ADDRESS`, which Ray
    sets in a job. Without it, a cluster is started on this machine, and stopped at the end of the context; it listens
    on loopback alone.

    Args:
        verbose: show Ray's own logs.
        num_cpus: number of CPUs of a cluster that is started here; None for those of the machine.
        dashboard: start the dashboard of a cluster that is started here.

    Raises:
        NoCluster: no cluster answers at `RAY_ADDRESS`, or none can be started here.
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
    options: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    if address := check_address():
        options |= {"address": address}
    else:
        _check_folder()
        # Ray would write a token to ~/.ray, which `ray start` would then require of every client of its clusters
        os.environ.setdefault(TOKEN, secrets.token_hex(32))
        # keeps idle processes for a minute instead of a second: starting one takes a core for three seconds
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")
        options |= {"address": LOCAL, "include_dashboard": dashboard, "num_cpus": num_cpus}
    before = _ray_processes()
    try:
        _init(options)
        yield
    finally:
        with contextlib.nullcontext() if address else _without_orphans(_ray_processes() - before):
            ray.shutdown()


def _ray_processes() -> set[psutil.Process]:
    """Return Ray's processes among the descendants of this one."""
    ours: set[psutil.Process] = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "ray::" in command or "/ray/" in command:
                ours.add(process)
    return ours


@contextlib.contextmanager
def _without_orphans(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Kill those processes that still run some time after the end of the context.

    Ray (2.60) leaves its agents behind, for good, if a cluster is shut down while they start.
    """
    try:
        yield
    finally:
        _, left = psutil.wait_procs(processes, END_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()


def check_address() -> str | None:
    """Return HOST:PORT of the cluster at `RAY_ADDRESS`, which answers; None if the variable names none.

    Raises:
        NoCluster: it is not the address of a cluster's head, or none of this version answers there within
            `CONNECT_SECONDS`.
    """
    given = given_address()
    if given is None:
        return None
    repair = "start one with `ray start --head`, or unset RAY_ADDRESS to start one for this run alone"
    if "://" in given:
        raise NoCluster(
            f"{ADDRESS}: expected HOST:PORT of a cluster's head, such as 10.0.0.1:6379, got {given}: run on a machine "
            "of the cluster with RAY_ADDRESS=auto, or submit a job with `ray job submit --working-dir . -- ...`"
        )
    address = compat.address_of_auto() if given == "auto" else given
    if address is None:
        raise NoCluster(f"{ADDRESS}: expected a Ray cluster on this machine, got {given} and none runs here: {repair}")
    if not re.fullmatch(r"(\[[^\]]+\]|[^:\s]+):\d{1,5}", address) or int(address.rpartition(":")[2]) > 65535:
        raise NoCluster(f"{ADDRESS}: expected auto or HOST:PORT such as 10.0.0.1:6379, got {address}: {repair}")
    shown = address if given == address else f"{address} ({given})"
    try:
        version = compat.version_of(address, CONNECT_SECONDS)
    except PermissionError as error:
        raise NoCluster(
            f"{ADDRESS}: expected a cluster at {shown} that accepts this process's token, got {_one_line(error)}: "
            f"{_token_repair()}"
        ) from None
    except OSError as error:
        raise NoCluster(f"{ADDRESS}: expected a Ray cluster at {shown}, got {_one_line(error)}: {repair}") from None
    if version != ray.__version__:
        raise NoCluster(
            f"{ADDRESS}: expected Ray {ray.__version__} at {shown}, as installed here, got Ray {version}: install the "
            f"same version on both sides (groundray needs ray{compat.RAY_VERSIONS})"
        )
    return address


def _token_repair() -> str:
    """Return the line that is missing where a cluster refuses this process: it asks for a token that is not sent."""
    file = Path(os.environ.get(TOKEN_FILE) or DEFAULT_TOKEN_FILE).expanduser()
    has_token = bool(os.environ.get(TOKEN)) or file.is_file()
    is_sent = os.environ.get(TOKEN_MODE, "").lower() == "token"
    if has_token and not is_sent:
        return f"run `export {TOKEN_MODE}=token` first"
    where = f"run `export {'' if is_sent else f'{TOKEN_MODE}=token '}{TOKEN}=...` first, with what `ray get-auth-token`"
    other = f", instead of the token in {TOKEN if os.environ.get(TOKEN) else file}" if has_token else ""
    return f"{where} prints on the cluster's head{other}"


def _check_folder() -> None:
    """Check that this user can start a cluster in Ray's folder; a TMPDIR too long for sockets is not used for it.

    Raises:
        NoCluster: the folder cannot be used; the message gives the repair.
    """
    folder = Path(compat.temporary_folder())
    if len(os.fsencode(folder.parent)) > MAX_FOLDER_BYTES:
        if FOLDER in os.environ:
            raise NoCluster(
                f"{FOLDER}: expected a path of at most {MAX_FOLDER_BYTES} bytes, as it holds sockets, got "
                f"{folder.parent}: set a shorter one, such as {SHORT_FOLDER}"
            )
        os.environ[FOLDER] = SHORT_FOLDER  # TMPDIR, as Slurm and macOS give it; Ray's processes inherit this
        folder = Path(compat.temporary_folder())
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    address = folder / "ray_current_cluster"
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        problem = f"{existing}, which {'this user cannot write' if existing.is_dir() else 'is no folder'}"
    elif address.exists() and not os.access(address, os.R_OK):
        problem = f"{address}, which this user cannot read"
    else:
        return
    raise NoCluster(
        f"{FOLDER}: expected a folder for Ray's sockets and logs that this user can write, got {problem}: set "
        f"{FOLDER} to a folder of your own with a short path (at most {MAX_FOLDER_BYTES} bytes)"
    )


def _init(options: dict[str, Any]) -> None:
    """Call `ray.init`, and keep this process's handler of SIGTERM, also while Ray starts.

    Raises:
        NoCluster: Ray cannot start, or cannot connect.
    """
    on_main_thread = threading.current_thread() is threading.main_thread()
    terminate = signal.getsignal(signal.SIGTERM)
    hang_up = signal.getsignal(HANG_UP) if HANG_UP else None
    if on_main_thread and HANG_UP:
        # A terminal that hangs up signals every process of its group. Ray's processes inherit that it is ignored, so
        # that this process, whose handler it reaches, can still have a checkpoint written.
        signal.signal(HANG_UP, signal.SIG_IGN)
    try:
        with compat.loopback_only() if options["address"] == LOCAL else contextlib.nullcontext():
            ray.init(**options)
    except SystemExit:  # raised by Ray's handler of SIGTERM
        if not callable(terminate):
            raise
        signal.signal(signal.SIGTERM, terminate)
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt from None
    except Exception as error:  # Ray raises a plain one where a busy machine starts it too slowly
        action = f"connect to the cluster at {options['address']}" if "num_cpus" not in options else "start Ray here"
        raise NoCluster(f"cannot {action}: {_one_line(error)}") from error
    finally:
        if on_main_thread:
            # Ray installs its own SIGTERM handler, which ends the driver; its C++ part aborts the process three
            # seconds later
            if callable(terminate):
                signal.signal(signal.SIGTERM, terminate)
            if HANG_UP:
                signal.signal(HANG_UP, hang_up or signal.SIG_DFL)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
