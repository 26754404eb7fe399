"""Models in MLflow: the model of a run, and versions and aliases of a registered model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking.store import client_of, experiment_of, find_run
from groundray.training import identity


def attach_model(client: Any, run_id: str, folder: Folder) -> None:
    with tempfile.TemporaryDirectory() as local:
        (folder / "model").download(Path(local))
        client.log_artifacts(run_id, local, "model")


def register(settings: Settings, folder: Folder, name: str, alias: str) -> str:
    """Register the model of a run's folder, let `models:/NAME@ALIAS` refer to it, and return its version.

    A model that is registered already keeps its version.

    Raises:
        ValueError: the run has no MLflow run.
    """
    from mlflow.exceptions import MlflowException

    client = client_of(settings)
    run = identity.read(folder)
    experiment = experiment_of(client, settings)
    run_id = find_run(client, settings, experiment, run.id) if run else None
    if run_id is None:
        raise ValueError(f"{folder} has no MLflow run")
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name)
    # filtered by an id, which needs no quotes
    registered = client.search_model_versions(f"run_id = '{run_id}'")
    versions = [version for version in registered if version.name == name]
    if not versions:
        attach_model(client, run_id, folder)
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        versions = [client.create_model_version(name, source, run_id)]
    client.set_registered_model_alias(name, alias, versions[0].version)
    return str(versions[0].version)
