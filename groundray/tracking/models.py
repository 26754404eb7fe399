"""Models in MLflow: the logged model of a run, and versions and aliases of a registered model.

The model of a run is one logged model named `model`, with the layout of `mlflow_model.py`; `runs:/RUN_ID/model`,
`models:/MODEL_ID` and, once it is registered, `models:/NAME@ALIAS` are the same files. A run that ends again, since it
was resumed or repeated, keeps its logged model as long as its export is the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundray.config import Settings
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.tracking import mlflow_model
from groundray.tracking.store import client_of, experiment_of, find_run
from groundray.training import identity
from groundray.training.layout import MODEL

EXPORT_TAG = "groundray.export"  # of a logged model: the checksum of its export's groundray.json
VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: what MLflow's page shows as its registered versions
UPLOAD_BYTES_PER_SECOND = 2**20  # a slower upload of the model counts as none


def attach_model(
    client: Any, run_id: str, folder: Folder, progress: Callable[[float], None] = lambda _: None
) -> Any | None:
    """Log the exported model of a run's folder as the model of its MLflow run, and return MLflow's logged model.

    An upload that was stopped is repeated for the same logged model. Returns None if the folder has no model.

    Args:
        progress: is called where there is progress, with the extra seconds that the next may take.
    """
    from mlflow.entities import LoggedModelOutput

    exported = folder / MODEL
    if not exported.exists(export.ABOUT):
        return None
    run = client.get_run(run_id)
    checksum = exported.seal(export.ABOUT).sha256
    model = _logged_model(client, run, checksum) or client.create_logged_model(
        run.info.experiment_id, MODEL, run_id, {EXPORT_TAG: checksum}, model_type="groundray"
    )
    if model.status != "READY":
        if not run.outputs or model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        seconds = sum(size for _, size, _ in exported.states()) / UPLOAD_BYTES_PER_SECOND
        with tempfile.TemporaryDirectory() as local:
            progress(seconds)
            exported.download(Path(local))
            mlflow_model.write(Path(local), run_id, model.model_id, model.artifact_location)
            progress(seconds)
            client.log_model_artifacts(model.model_id, local)
        progress(0.0)
        _log_metrics(client, run, model.model_id)
        model = client.finalize_logged_model(model.model_id, "READY")
    return model


def _logged_model(client: Any, run: Any, checksum: str) -> Any | None:
    """Return the logged model of a run that has an export of this checksum, None if there is none."""
    token = None
    while token != "":
        page = client.search_logged_models(
            [run.info.experiment_id], f"tags.`{EXPORT_TAG}` = '{checksum}'", page_token=token
        )
        for model in page:
            if model.source_run_id == run.info.run_id:
                return model
        token = page.token or ""
    return None


def _log_metrics(client: Any, run: Any, model_id: str) -> None:
    """Log the metrics of each stage's best weights as the logged model's."""
    from mlflow.entities import Metric

    best = [metric for metric in run.to_proto().data.metrics if "/best/" in metric.key]
    metrics = [Metric(each.key, each.value, each.timestamp, each.step, model_id=model_id) for each in best]
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)


def register(settings: Settings, folder: Folder, name: str, alias: str) -> str:
    """Register the model of a run's folder, let `models:/NAME@ALIAS` refer to it, and return its version.

    A model that is registered already keeps its version.

    Raises:
        ValueError: the run has no MLflow run, or no model.
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
        model = attach_model(client, run_id, folder)
        if model is None:
            raise ValueError(f"{folder} has no {MODEL}/")
        # by its address: MLflow would look up `models:/ID` at the process's own tracking URI
        versions = [client.create_model_version(name, model.artifact_location, run_id, model_id=model.model_id)]
        entry = json.dumps([*_versions(model), {"name": name, "version": versions[0].version}])
        client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: entry})
    client.set_registered_model_alias(name, alias, versions[0].version)
    return str(versions[0].version)


def _versions(model: Any) -> list[dict[str, Any]]:
    """Return the registered versions of a logged model."""
    return json.loads(model.tags.get(VERSIONS_TAG, "[]"))
