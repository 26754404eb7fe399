"""Stores of MLflow with a registered model, for tests: a local one, and a server on loopback."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

NAME = "groundray"


@dataclass(frozen=True)
class Registry:
    """A store with a run whose model is an artifact, registered as version 1, and logged models of the run, of which
    one is registered as version 2, `best`.

    Attributes:
        artifacts: location of the run's artifacts.
    """

    uri: str
    run: str
    logged: str
    artifacts: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)


def write(uri: str, checkpoint: str, artifacts: str | None = None) -> Registry:
    client = MlflowClient(uri)
    experiment = client.create_experiment("tests", artifacts)
    run = client.create_run(experiment).info
    client.log_artifacts(run.run_id, checkpoint, "export")
    client.create_registered_model(NAME)
    client.create_model_version(NAME, f"{run.artifact_uri}/export", run.run_id)
    model = client.create_logged_model(experiment, "model", run.run_id)
    client.log_model_artifacts(model.model_id, checkpoint)
    client.finalize_logged_model(model.model_id, "READY")
    client.create_model_version(NAME, model.artifact_location, run.run_id, model_id=model.model_id)
    client.set_registered_model_alias(NAME, "best", "2")
    return Registry(uri, run.run_id, model.model_id, str(run.artifact_uri))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yield the URL of a server that serves its artifacts, as `mlflow server --serve-artifacts` does.

    Args:
        folder: holds the store, `mlflow.db`, and the artifacts.

    It is a process of its own: MLflow keeps a server's settings in the environment, where they change what clients of
    the same process do. It runs this file, since `mlflow server` takes 20 s to start.
    """
    settings = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "served"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().decode().strip()
        assert port, (folder / "server.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate()


def _serve() -> None:
    """Serve MLflow's application on a free port, which is printed, until standard input ends with the parent."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


def use(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name the registry in MLFLOW_TRACKING_URI, with an empty cache and working folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


if __name__ == "__main__":
    _serve()
