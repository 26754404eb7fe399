"""Nothing that a shell sets reaches a test, and no test writes to the home or asks the servers of who runs it."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import known_environment
import pytest

ROOT = Path(__file__).parents[1]
FILES = (  # one of Ray, one of MLflow, one of the stores of objects
    "tests/runtime/data/test_embedding_tasks.py",
    "tests/tracking/test_data_sets.py",
    "tests/storage/test_object_store.py",
)


def shell(address: str, home: str) -> dict[str, str]:
    """What a shell may set: the address of a server for everything, and unusual settings of everything else."""
    url = f"http://{address}"
    return {
        "HOME": home,
        **{"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "another", "RAY_TMPDIR": home},
        **{"MLFLOW_TRACKING_URI": url, "MLFLOW_REGISTRY_URI": url, "MLFLOW_RUN_ID": "another"},
        **{"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"},
        **{"AWS_PROFILE": "nowhere", "AWS_DEFAULT_REGION": "eu-nowhere-1", "STORAGE_EMULATOR_HOST": url},
        **{"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_another", "WANDB_API_KEY": "another"},
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy"), url),
        **{"LANG": "C", "LC_ALL": "C", "TZ": "Asia/Kathmandu", "COLUMNS": "7", "FORCE_COLOR": "1"},
        **{"XDG_CACHE_HOME": home, "GROUNDRAY_HOME": home, "GIT_DIR": home, "NETRC": f"{home}/netrc"},
    }


def test_what_a_shell_sets_is_set_aside(tmp_path: Path) -> None:
    machine = {"PATH": "/bin", "PYTHONPATH": "/here", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}
    asked = {"GROUNDRAY_DEMO": "/demo"}
    environment = known_environment.known(machine | asked | shell("127.0.0.1:9", "/home/ada"), tmp_path)
    assert environment == known_environment.known(machine | asked, tmp_path)
    assert environment.items() >= (machine | asked).items()
    assert environment["HOME"] == str(tmp_path / "home")


@contextmanager
def server() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server, and who has connected to it."""
    connected: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connected.append(str(self.client_address))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"127.0.0.1:{listening.server_address[1]}", connected
        listening.shutdown()
        thread.join()


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_tests_pass_whoever_runs_them(tmp_path: Path) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("another")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        "not thorough",
        *FILES,
    ]
    with server() as (address, connected):
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment = plain | shell(address, str(tmp_path))
        ran = subprocess.run(command, cwd=ROOT, env=environment, umask=0o077, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not connected
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [token]
