"""MLflow: one MLflow run for each training run, owned by the driver and found again by its tag when the run resumes.

Each step is logged exactly once, however often it was repeated: what was lost because a driver or worker was killed, or
a server was down, is logged later from the run's own history. All calls happen on a separate thread with a timeout, so
a tracking server that is slow or down never delays or ends a training run. The first failure is reported when it
happens, and the number of events that could not be logged at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from groundray.config import Settings, flatten
from groundray.storage.folder import Folder
from groundray.training import history, recovery
from groundray.training.events import Attempted, EpochDone, Event, Recovered, StageDone, StepDone
from groundray.training.preflight import CheckedRun

DEFAULT_URI = "sqlite:///mlflow.db"
RUN_TAG = "groundray.run"
TRAINING_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development"
}  # MLflow's page then opens on runs and curves
FLUSH_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 60.0
MAX_METRICS = 1000  # in one call: limits of MLflow
MAX_PARAMETERS = 100
PREFIXES = {StepDone: "", EpochDone: "/val", StageDone: "/best"}  # of an event's metrics, after the stage's name
Status = Literal["FINISHED", "FAILED", "KILLED"]
PACKAGES = ("groundray", "ray", "torch", "torchvision", "transformers", "mlflow-skinny", "pyarrow", "numpy")


class Tracker:
    """Logs a training run to MLflow; every method returns at once, except `close`."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        fingerprints: Mapping[str, str],
        warn: Callable[[str], None],
        parent: str | None = None,
    ):
        """Start to track the run in a folder.

        Args:
            fingerprints: the data sets' fingerprints by name, such as `grounding.train`.
            warn: takes a line for each problem.
            parent: the MLflow run of a sweep. A run that has one does not log its model.
        """
        self._settings, self._folder, self._fingerprints, self._warn = settings, folder, fingerprints, warn
        self._parent = parent
        self._jobs: queue.Queue[Event | dict[str, Any] | None] = queue.Queue()
        self._lost = 0
        self._thread = threading.Thread(target=self._work, name="groundray-tracking", daemon=True)
        self._thread.start()

    @staticmethod
    def of(run: CheckedRun, warn: Callable[[str], None], parent: str | None = None) -> Tracker:
        """Return a tracker of a run."""
        return Tracker(run.settings, run.folder, run.fingerprints, warn, parent)

    def observe(self, event: Event) -> None:
        """Log the metrics of an event."""
        self._jobs.put(event)

    def close(self, result: dict[str, Any] | None, status: Status = "FINISHED") -> None:
        """End the MLflow run. Waits at most CLOSE_TIMEOUT_SECONDS for calls that are in progress."""
        self._jobs.put({"result": result, "status": status})
        self._jobs.put(None)
        self._thread.join(CLOSE_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            self._warn(f"tracking: no answer within {CLOSE_TIMEOUT_SECONDS:.0f} s; the run itself is complete")
        elif self._lost:
            self._warn(f"tracking: {self._lost} events could not be logged; the run itself is complete")

    def _work(self) -> None:
        log: _Log | None = None
        closed = False
        while not closed:
            batch, closed = self._next_batch()
            try:
                opened = log is None
                log = log or _Log.open(self._settings, self._folder, self._fingerprints, self._parent)
                if opened or any(isinstance(job, dict | Attempted) for job in batch):  # events may be missing
                    log.metrics([event for event, _ in history.read(self._folder, self._warn)])
                    log.metrics(recovery.recoveries(self._folder))
                log.metrics([event for event in batch if not isinstance(event, dict)])
                for job in batch:
                    if isinstance(job, dict):
                        log.end(job["result"], job["status"], self._folder)
                        self._lost = 0
            except Exception as error:  # noqa: BLE001  whatever tracking raises, training continues
                if not self._lost:
                    self._warn(f"tracking failed, training continues: {_one_line(error)}")
                self._lost += len(batch)
                log = None  # its MLflow run may have been deleted

    def _next_batch(self) -> tuple[list[Event | dict[str, Any]], bool]:
        """Return the jobs of the next FLUSH_SECONDS, and whether the queue is closed."""
        batch: list[Event | dict[str, Any]] = []
        until = time.monotonic() + FLUSH_SECONDS
        while (left := until - time.monotonic()) > 0 and len(batch) < MAX_METRICS:
            try:
                job = self._jobs.get(timeout=left)
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False


class _Log:
    """An MLflow run that is open for writing."""

    def __init__(self, client: Any, run_id: str, logged: set[tuple[str, int]], attaches_model: bool):
        self._client, self._run_id, self._logged = client, run_id, logged
        self._attaches_model = attaches_model

    @staticmethod
    def open(settings: Settings, folder: Folder, fingerprints: Mapping[str, str], parent: str | None) -> _Log:
        """Find the MLflow run of a training run by its tag, or create it with the run's parameters."""
        client, number = _client(settings)
        run_id = _reopen(client, number, folder)
        if run_id is None:
            flat = {**dict(flatten(settings.model_dump(mode="json"))), "scaling.chunks": settings.chunks}
            known = flat | {f"data.{name}.fingerprint": value for name, value in fingerprints.items()}
            versions = {f"version.{name}": _version(name) for name in PACKAGES}
            tags = versions | ({"mlflow.parentRunId": parent} if parent else {})
            run_id = _create_run(client, number, settings, folder, "groundray.train", known, tags)
        logged = {
            (prefix, point.step)
            for prefix in (stage + suffix for stage in settings.stages for suffix in PREFIXES.values())
            for point in client.get_metric_history(run_id, f"{prefix}/loss")
        }
        for name, series in (("attempts", "attempted"), ("first_step_seconds", "recovered")):
            logged |= {(series, point.step) for point in client.get_metric_history(run_id, f"recovery/{name}")}
        return _Log(client, run_id, logged, attaches_model=parent is None)

    def metrics(self, events: Sequence[Event]) -> None:
        """Log each event once: steps as `grounding/loss`, validation as `grounding/val/loss`, a stage's best epoch as
        `grounding/best/loss`, and recovery as `recovery/...` with the attempt's number as the step."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], list[Any]] = {}
        for event in events:
            if (entry := _entry(event)) and (entry.series, entry.step) not in self._logged:
                new[entry.series, entry.step] = [
                    Metric(f"{entry.prefix}/{name.replace('@', '_at_')}", value, int(entry.time * 1000), entry.step)
                    for name, value in entry.metrics.items()
                ]
        while new:
            part: dict[tuple[str, int], list[Any]] = {}
            while new and sum(map(len, part.values())) + len(next(iter(new.values()))) <= MAX_METRICS:
                key = next(iter(new))
                part[key] = new.pop(key)
            self._client.log_batch(self._run_id, metrics=[point for points in part.values() for point in points])
            self._logged |= part.keys()

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Log the result and the model, and end the MLflow run."""
        if result is not None:
            self._client.log_dict(self._run_id, result, "result.json")
            if self._attaches_model:
                _attach_model(self._client, self._run_id, folder)
        self._client.set_terminated(self._run_id, status)


class SweepLog:
    """The MLflow run of a sweep, the parent of its trials' runs. What cannot be logged is reported as a warning."""

    def __init__(self, settings: Settings, folder: Folder, known: Mapping[str, Any], warn: Callable[[str], None]):
        """Find the MLflow run by its tag, or create it with the parameters `known`."""
        self._settings, self._folder, self._warn = settings, folder, warn
        self.run_id: str | None = None
        with self._warned():
            client, number = _client(settings)
            self.run_id = _reopen(client, number, folder) or _create_run(
                client, number, settings, folder, "groundray.sweep", known, {}
            )

    def close(self, metrics: Mapping[str, float], files: Sequence[str], finished: bool) -> None:
        """Attach what came out of the sweep, files of its folder by name, and close its run."""
        with self._warned():
            client, _ = _client(self._settings)
            for name, value in metrics.items():
                client.log_metric(self.run_id, name.replace("@", "_at_"), value)
            with tempfile.TemporaryDirectory() as local:
                for name in files:
                    (Path(local) / name).write_bytes(self._folder.read_bytes(name))
                client.log_artifacts(self.run_id, local)
            client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def register(self, trial: Folder, name: str, alias: str) -> str | None:
        """Register a trial's model, let `models:/NAME@ALIAS` refer to it, and return its version; None if that failed.

        A model that is registered already keeps its version.
        """
        with self._warned():
            client, number = _client(self._settings)
            run_id = _find_run(client, number, trial)
            if run_id is None:
                raise ValueError(f"{trial} has no MLflow run")
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
            if not versions:
                _attach_model(client, run_id, trial)
                source = f"{client.get_run(run_id).info.artifact_uri}/model"
                versions = [client.create_model_version(name, source, run_id)]
            client.set_registered_model_alias(name, alias, versions[0].version)
            return str(versions[0].version)
        return None

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever tracking raises, the sweep continues
            self._warn(f"tracking failed, the sweep continues: {_one_line(error)}")


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
        client, number = _client(settings)
        run_id = _find_run(client, number, folder)
        if run_id is None:
            raise ValueError(f"no MLflow run of {folder} at {uri_of(settings)}: train with tracking.enabled true")
        now = int(time.time() * 1000)
        points = [Metric(_metric_name(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(points), MAX_METRICS):
            client.log_batch(run_id, metrics=points[start : start + MAX_METRICS])
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                (Path(local) / name).write_bytes(content)
            client.log_artifacts(run_id, local, "analysis")
    except Exception as error:  # noqa: BLE001  whatever tracking raises, the analysis is complete
        warn(f"tracking failed, the analysis itself is complete: {_one_line(error)}")
        return False
    return True


def _one_line(error: Exception) -> str:
    """Return the type and the first line of an exception."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _metric_name(name: str) -> str:
    """Return a metric's name with only the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def uri_of(settings: Settings) -> str:
    """Return the tracking URI of a run, which means the same in every folder of this machine."""
    uri = settings.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}:///{Path(path).absolute()}" if slashes and scheme == "sqlite" else uri


def _client(settings: Settings) -> tuple[Any, str]:
    """Return MLflow's client, and the id of the settings' experiment, which is created if it does not exist."""
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "1"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow import MlflowClient  # takes seconds, so only a tracked run imports it, off the main thread

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it logs each table that it creates
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    client = MlflowClient(uri_of(settings))
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    if experiment:
        return client, experiment.experiment_id
    return client, client.create_experiment(settings.tracking.experiment, tags=TRAINING_EXPERIMENT)


def _reopen(client: Any, experiment: str, folder: Folder) -> str | None:
    """Set the MLflow run of a folder to running, and return its id; None if there is none."""
    run_id = _find_run(client, experiment, folder)
    if run_id:
        client.update_run(run_id, status="RUNNING")
    return run_id


def _find_run(client: Any, experiment: str, folder: Folder) -> str | None:
    """Return the id of the MLflow run of a folder, None if there is none.

    If several were created at once, as by a stopped trial and the sweep that closes its run, the oldest is kept and the
    others, which hold nothing else, are deleted.
    """
    runs = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{folder}'")
    first, *later = sorted((run.info.start_time, run.info.run_id) for run in runs) or [(0, None)]
    for _, run_id in later:
        client.delete_run(run_id)
    return first[1]


def _create_run(
    client: Any,
    experiment: str,
    settings: Settings,
    folder: Folder,
    source: str,
    known: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Create an MLflow run with the parameters `known`, and return its id; or that of a run another process created."""
    from mlflow.entities import Param

    named = {RUN_TAG: str(folder), "mlflow.source.name": source, "git.commit": git_commit()}
    run_id = client.create_run(experiment, run_name=settings.run.name, tags={**named, **tags}).info.run_id
    if (first := _find_run(client, experiment, folder)) not in (None, run_id):
        return first
    parameters = [Param(name, str(value)) for name, value in known.items()]
    for start in range(0, len(parameters), MAX_PARAMETERS):
        client.log_batch(run_id, params=parameters[start : start + MAX_PARAMETERS])
    client.log_text(run_id, settings.to_yaml(), "config.yaml")
    return run_id


def _attach_model(client: Any, run_id: str, folder: Folder) -> None:
    with tempfile.TemporaryDirectory() as local:
        (folder / "model").download(Path(local))
        client.log_artifacts(run_id, local, "model")


class _Entry(NamedTuple):
    """The metrics of an event, named `prefix/...`. There is one event for each series and step."""

    series: str
    prefix: str
    step: int
    time: float
    metrics: dict[str, float]


def _entry(event: Event) -> _Entry | None:
    match event:
        case StepDone() | EpochDone() | StageDone():
            prefix = event.stage + PREFIXES[type(event)]
            return _Entry(prefix, prefix, event.step, event.time, event.metrics)
        case Attempted():
            metrics = {
                "attempts": float(event.number),
                "preemptions": float(event.preemptions),
                "repeated_steps": float(event.repeated_steps),
                "repeated_seconds": event.repeated_seconds,
            }
            return _Entry("attempted", "recovery", event.number, time.time(), metrics)
        case Recovered():
            metrics = {"first_step_seconds": event.start_seconds, "down_seconds": event.down_seconds}
            return _Entry("recovered", "recovery", event.number, time.time(), metrics)
    return None


def git_commit() -> str:
    """Return the commit of the working directory, with `-dirty` if files differ; `unknown` outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
