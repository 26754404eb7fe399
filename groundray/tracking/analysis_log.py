"""Adds an analysis to the MLflow run of a training run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from groundray.config import Settings
from groundray.credentials import redacted
from groundray.storage.folder import Folder
from groundray.tracking.store import (
    MAX_METRICS,
    adopted_run,
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
    folder: Folder,
    metrics: Mapping[str, float],
    files: Mapping[str, bytes],
    warn: Callable[[str], None],
) -> bool:
    """Add the metrics and files of an analysis to a run's MLflow run, the files in `analysis/`.

    Returns False, with a warning, if that failed.
    """
    from mlflow.entities import Metric

    try:
        client = client_of(settings)
        experiment = experiment_of(client, settings)
        run = identity.read(folder)
        run_id = find_run(client, settings, experiment, run.id) if run else None
        if run is None or run.adopted:
            run_id = run_id or adopted_run(client, experiment, folder, settings)
        if run_id is None:
            raise ValueError(
                f"no MLflow run of {folder} at {redacted(uri_of(settings))}: train with tracking.enabled true"
            )
        now = int(time.time() * 1000)
        points = [Metric(metric_name(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(points), MAX_METRICS):
            client.log_batch(run_id, metrics=points[start : start + MAX_METRICS])
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                (Path(local) / name).write_bytes(content)
            client.log_artifacts(run_id, local, "analysis")
    except Exception as error:  # noqa: BLE001  whatever tracking raises, the analysis is complete
        warn(f"tracking failed, the analysis itself is complete: {one_line(error)}")
        return False
    return True
