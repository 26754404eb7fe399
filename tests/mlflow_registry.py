"""Stores of MLflow with a registered model, for tests: a local one, and a server on loopback.

The server runs in a thread of this process: in a process of its own it takes 20 s to start.
"""

from __future__ import annotations

import contextlib
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

    MLflow keeps a store for the life of a process: one server a process.
    """
    from werkzeug.serving import make_server

    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/mlflow.db")
        patches.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patches.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "served"))
        patches.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app
        from mlflow.tracking._model_registry import utils as registry_utils
        from mlflow.tracking._tracking_service import utils as tracking_utils

        # its handlers would make the server's store the one of all clients of this process
        patches.setattr(tracking_utils, "set_tracking_uri", lambda _: None)
        patches.setattr(registry_utils, "set_registry_uri", lambda _: None)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            server.shutdown()
            thread.join()


def use(registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name the registry in MLFLOW_TRACKING_URI, with an empty cache and working folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
