"""Joining a cluster."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from groundray import config
from groundray.runtime import cluster, compat
from groundray.runtime.ray_address import given_address
from groundray.runtime.train import resources

# longer than the three seconds after which Ray's C++ part aborts a process that it saw SIGTERM in
DRIVER = """
import os, signal, time
from groundray.runtime import cluster

heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
with cluster.connect(num_cpus=1):
    os.kill(os.getpid(), signal.SIGTERM)
    until = time.monotonic() + 4
    while time.monotonic() < until:
        time.sleep(0.1)
    print("heard", heard)
"""


@pytest.mark.thorough
def test_sigterm_comes_to_the_driver_and_leaves_it_time_and_its_cluster_leaves_no_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stdout) == (0, "heard [15]\n"), ran.stderr
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def gcs(version: str = ray.__version__, refuses: bool = False) -> Iterator[str]:
    """Answer as the head of a cluster does when it is asked whether it is alive; yields HOST:PORT."""

    class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
        def CheckAlive(self, request: Any, context: Any) -> Any:  # noqa: N802
            if refuses:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "token is missing")
            return gcs_service_pb2.CheckAliveReply(ray_version=version)

    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Head(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """Accept connections as a program that is not Ray; yields HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    open_connections.append(connection)
                    connection.sendall(answer)

        open_connections: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in open_connections:
            connection.close()


def refusal(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    with pytest.raises(cluster.NoCluster, match=r"^RAY_ADDRESS: expected ") as caught:
        cluster.check_address()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("value", ["local", "", None])
def test_only_an_address_of_a_cluster_is_one(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setattr(ray, "init", None)  # calling it fails: no cluster is started
    assert (given_address(), cluster.check_address()) == (None, None)
    needs = resources.preview(config.load("demo", ["--run.name=x"]))
    assert needs.where == "this machine"


def test_an_address_where_nothing_listens_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    address = free_address()
    assert address in refusal(monkeypatch, address)


def test_auto_names_the_address_of_the_dead_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    address = free_address()
    monkeypatch.setattr(compat, "address_of_auto", lambda: address)
    message = refusal(monkeypatch, "auto")
    assert address in message
    assert "ray start --head" in message
    monkeypatch.setattr(compat, "address_of_auto", lambda: None)
    assert "none runs here" in refusal(monkeypatch, "auto")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "HTTP"])
def test_another_program_on_the_port_is_no_cluster(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    with listening(answer) as address:
        began = time.monotonic()
        assert address in refusal(monkeypatch, address)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "head", "head:99999", ":6379"])
def test_an_address_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert "HOST:PORT" in refusal(monkeypatch, address)


def test_a_cluster_of_another_version_or_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs(version="1.2.3") as address:
        message = refusal(monkeypatch, address)
        assert f"Ray {ray.__version__}" in message
        assert "Ray 1.2.3" in message


MODE, TOKEN, FILE = "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN=...", "token in"


@pytest.mark.parametrize(
    ("mode", "given", "kept", "asked", "not_asked"),
    [
        ("", "", True, (MODE,), (TOKEN, FILE)),
        ("disabled", "a", False, (MODE,), (TOKEN, FILE)),
        ("token", "", False, (TOKEN,), (MODE, FILE)),
        ("", "", False, (MODE, TOKEN), (FILE,)),
        ("token", "a", False, (TOKEN, f"{FILE} RAY_AUTH_TOKEN"), (MODE,)),
        ("token", "", True, (TOKEN, f"{FILE} /"), (MODE,)),
    ],
)
def test_a_cluster_that_asks_for_a_token_is_told_with_the_line_that_is_missing(
    mode: str,
    given: str,
    kept: bool,
    asked: tuple[str, ...],
    not_asked: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", given)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    if kept:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a" * 32)
    with gcs(refuses=True) as address:
        message = refusal(monkeypatch, address)
    assert [part for part in asked if part not in message] == []
    assert [part for part in not_asked if part in message] == []


def test_an_address_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with gcs() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert cluster.check_address() == address
    for none in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", none)
        assert cluster.check_address() is None


def test_a_long_tmpdir_is_not_used_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * cluster.MAX_FOLDER_BYTES)
    cluster._check_folder()
    assert os.environ["RAY_TMPDIR"] == cluster.SHORT_FOLDER
    monkeypatch.setenv("RAY_TMPDIR", os.environ["TMPDIR"])
    with pytest.raises(cluster.NoCluster, match=rf"RAY_TMPDIR: .* at most {cluster.MAX_FOLDER_BYTES} bytes"):
        cluster._check_folder()


def test_a_folder_that_cannot_hold_sockets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own is too long
        monkeypatch.setenv("RAY_TMPDIR", folder)
        cluster._check_folder()
        (Path(folder) / "ray").touch()
        with pytest.raises(cluster.NoCluster, match=rf"got {folder}/ray, which is no folder: set RAY_TMPDIR"):
            cluster._check_folder()
        (Path(folder) / "ray").unlink()
        monkeypatch.setattr(os, "access", lambda path, mode: str(path) != folder)
        with pytest.raises(cluster.NoCluster, match=rf"got {folder}, which this user cannot write: set RAY_TMPDIR"):
            cluster._check_folder()


STARTING = """
import sys
from groundray.cli.command import run_command
def work(errors):
    from groundray.runtime import cluster
    with cluster.connect(num_cpus=1):
        print("up", flush=True)
        sys.stdin.read()
    return 0
sys.exit(run_command(work, interrupted="ended"))
"""


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_sigterm_while_ray_starts_leaves_no_process(seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STARTING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    descendants: list[psutil.Process] = []
    while not descendants and time.monotonic() < until:
        descendants = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(seconds)  # the first of Ray's processes runs
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (143, "ended\n")
    _, left = psutil.wait_procs(descendants, timeout=10)
    assert not left


def test_what_ray_raises_where_it_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThe GCS has become overloaded.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by another test
    told = "^cannot start Ray here: The current node timed out during startup. The GCS has become overloaded.$"
    with pytest.raises(cluster.NoCluster, match=told), cluster.connect():
        pass
