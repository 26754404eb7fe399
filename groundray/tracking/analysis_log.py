"""Adds an analysis to the MLflow run of a training run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from groundray.config import Settings
from groundray.credentials import redacted
from groundray.storage.folder import Folder
from groundray.tracking.model_uris import FoundModel
from groundray.tracking.store import (
    MAX_METRICS,
    adopted_run,
    client_at,
    client_of,
    experiment_of,
    find_run,
    metric_name,
    one_line,
    uri_of,
)
from groundray.training import identity


def log_analysis(
    settings: Settings,
    run: Folder | FoundModel,
    metrics: Mapping[str, float],
    files: Mapping[str, bytes],
    warn: Callable[[str], None],
) -> bool:
    """Add the metrics and files of an analysis to a run's MLflow run, the files in `analysis/`.

    Args:
        run: the run's folder, or its model in MLflow.

    Returns False, with a warning, if that failed.
    """
    from mlflow.entities import Metric

    try:
        client, run_id = _of_model(run) if isinstance(run, FoundModel) else _of_folder(settings, run)
        now = int(time.time() * 1000)
        points = [Metric(metric_name(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(points), MAX_METRICS):
            client.log_batch(run_id, metrics=points[start : start + MAX_METRICS])
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                (file := Path(local) / name).parent.mkdir(exist_ok=True)
                file.write_bytes(content)
            client.log_artifacts(run_id, local, "analysis")
    except Exception as error:  # noqa: BLE001  whatever tracking raises, the analysis is complete
        warn(f"tracking failed, the analysis itself is complete: {one_line(error)}")
        return False
    return True


def _of_folder(settings: Settings, folder: Folder) -> tuple[Any, str]:
    """Return MLflow's client, and the id of the MLflow run of a run's folder."""
    client = client_of(settings)
    experiment = experiment_of(client, settings)
    run = identity.read(folder)
    run_id = find_run(client, settings, experiment, run.id) if run else None
    if run is None or run.adopted:
        run_id = run_id or adopted_run(client, experiment, folder, settings)
    if run_id is None:
        raise ValueError(
            f"no MLflow run of {folder} at {redacted(uri_of(settings))}: train with tracking.enabled true and "
            "mlflow in tracking.to"
        )
    return client, run_id


def _of_model(model: FoundModel) -> tuple[Any, str]:
    """Return MLflow's client, and the id of the MLflow run that logged a model."""
    if model.run_id is None:
        raise ValueError(f"{model.uri} has no MLflow run to add the analysis to")
    return client_at(model.server), model.run_id
