"""Runs a training run in this process, without Ray."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import joblib
import torch

from groundray.config import Settings
from groundray.data.decoding_processes import DecodingProcesses
from groundray.training import progression
from groundray.training.accumulation import accumulating, offer_accumulation
from groundray.training.endings import RESUMES, GraphsDoNotFit
from groundray.training.events import Event, Notice
from groundray.training.preflight import CheckedRun
from groundray.training.watchdog import Watchdog
from groundray.training.worker import InProcess


def fit(
    run: CheckedRun, observe: Callable[[Event], None], get_stop_reason: Callable[[], str] = lambda: ""
) -> dict[str, Any]:
    """Train, and return the result.

    Args:
        get_stop_reason: returns the reason to write a checkpoint and stop, or an empty string.

    Raises:
        Stopped: the run was asked to stop; the same command resumes it.
    """
    settings = run.settings
    torch.set_num_threads(settings.scaling.threads or joblib.cpu_count())

    def tell(text: str) -> None:
        observe(Notice(text))

    watchdog = Watchdog(settings.scaling.hang_minutes * 60, run.folder, 0, tell)
    decoding = DecodingProcesses(decoding_processes(settings), settings.data.prefetch, tell)
    worker = InProcess(
        observe,
        device="cuda" if settings.scaling.use_gpu else "cpu",
        get_stop_reason=get_stop_reason,
        on_heartbeat=watchdog.heartbeat,
        decoding=decoding,
    )
    try:
        try:
            with offer_accumulation(settings, worker.rank, worker.world_size):
                return progression.run_stages(run, worker)
        except GraphsDoNotFit as error:
            tell(f"{error}; {RESUMES}")
        gc.collect()  # the failed attempt's tensors are reachable no more
        torch.cuda.empty_cache()
        return progression.run_stages(replace(run, settings=accumulating(settings)), worker)
    finally:
        watchdog.close()
        decoding.close()


def decoding_processes(settings: Settings) -> int:
    """Return the number of processes that decode for a run without Ray."""
    if settings.data.processes is not None:
        return settings.data.processes
    cpus = settings.scaling.threads or joblib.cpu_count()
    return cpus if cpus > 1 or settings.scaling.use_gpu else 0
