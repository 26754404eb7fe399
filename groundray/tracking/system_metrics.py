"""CPU, memory, disk, network and GPUs of the driver's machine, as `system/...` of an MLflow run."""

from __future__ import annotations

import logging
from typing import Any

from groundray.config import Settings
from groundray.tracking.store import uri_of


def monitor(settings: Settings, run_id: str) -> Any | None:
    """Start MLflow's monitor for an open run, and return it; None if `tracking.system_metrics` is false.

    It has its own thread, and a client of the settings' server. It ends with `finish`, when the run is ended, or at the
    first call that the server does not answer. The steps of a resumed run go on.
    """
    if not settings.tracking.system_metrics:
        return None
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    # else it reports its start and its end, that there is no GPU, and each failure, which the tracker does once
    logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
    started = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=uri_of(settings))
    started.start()
    return started
