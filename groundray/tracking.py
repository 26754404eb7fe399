"""MLflow: one run a training run, owned by the driver and found again by tag when the run is resumed.

Each step is logged once, however often it was done, and none is missing: what a killed driver, a killed worker or a
server that was down has lost is logged later, from the run's own history. Everything happens on a thread of its own
with a bounded patience: a tracking server that is slow or down never holds up or ends a training run. What could not be
logged is said once when it fails, and counted at the end.
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
TRAINING_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on runs and curves
FLUSH_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
MOST_METRICS = 1000  # of one call, by MLflow's limits
MOST_PARAMETERS = 100
PLACES = {StepDone: "", EpochDone: "/val", StageDone: "/best"}  # of an event's metrics, after the stage's name
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
        """A tracker of the run in a folder; one that has a `parent`, the MLflow run of a sweep, leaves its model where
        it is."""
        self._settings, self._folder, self._fingerprints, self._warn = settings, folder, fingerprints, warn
        self._parent = parent
        self._jobs: queue.Queue[Event | dict[str, Any] | None] = queue.Queue()
        self._lost = 0
        self._thread = threading.Thread(target=self._work, name="groundray-tracking", daemon=True)
        self._thread.start()

    @staticmethod
    def of(run: CheckedRun, warn: Callable[[str], None], parent: str | None = None) -> Tracker:
        """Returns a tracker of a run."""
        return Tracker(run.settings, run.folder, run.fingerprints, warn, parent)

    def observe(self, event: Event) -> None:
        """Log the metrics of an event."""
        self._jobs.put(event)

    def close(self, result: dict[str, Any] | None, status: Status = "FINISHED") -> None:
        """Finish the run, waiting a minute at most for what is still under way."""
        self._jobs.put({"result": result, "status": status})
        self._jobs.put(None)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"tracking: gave up after {PATIENCE_SECONDS:.0f} s; the run itself is complete")
        elif self._lost:
            self._warn(f"tracking: {self._lost} events could not be logged; the run itself is complete")

    def _work(self) -> None:
        log: _Log | None = None
        over = False
        while not over:
            batch, over = self._next_batch()
            try:
                opened = log is None
                log = log or _Log.open(self._settings, self._folder, self._fingerprints, self._parent)
                if opened or any(isinstance(job, dict | Attempted) for job in batch):  # what may have been lost before
                    log.metrics([event for event, _ in history.read(self._folder, self._warn)])
                    log.metrics(recovery.recoveries(self._folder))
                log.metrics([event for event in batch if not isinstance(event, dict)])
                for job in batch:
                    if isinstance(job, dict):
                        log.end(job["result"], job["status"], self._folder)
                        self._lost = 0
            except Exception as error:  # noqa: BLE001  whatever tracking raises, the training run goes on
                if not self._lost:
                    first = str(error).strip().splitlines() or [""]
                    self._warn(f"tracking failed, training goes on: {type(error).__name__}: {first[0]}")
                self._lost += len(batch)
                log = None  # its run may be gone

    def _next_batch(self) -> tuple[list[Event | dict[str, Any]], bool]:
        """What has come in, at the latest after FLUSH_SECONDS, and whether it is all there will be."""
        batch: list[Event | dict[str, Any]] = []
        until = time.monotonic() + FLUSH_SECONDS
        while (left := until - time.monotonic()) > 0 and len(batch) < MOST_METRICS:
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
        """The MLflow run of a training run: found by its tag, or made with all that is known at the start."""
        client, number = _client(settings)
        run_id = _found(client, number, folder)
        if run_id is None:
            flat = {**dict(flatten(settings.model_dump(mode="json"))), "scaling.chunks": settings.chunks}
            known = flat | {f"data.{name}.fingerprint": value for name, value in fingerprints.items()}
            versions = {f"version.{name}": _version(name) for name in PACKAGES}
            tags = versions | ({"mlflow.parentRunId": parent} if parent else {})
            run_id = _created(client, number, settings, folder, "groundray.train", known, tags)
        logged = {
            (prefix, point.step)
            for prefix in (stage + place for stage in settings.stages for place in PLACES.values())
            for point in client.get_metric_history(run_id, f"{prefix}/loss")
        }
        for name, place in (("attempts", "attempted"), ("first_step_seconds", "recovered")):
            logged |= {(place, point.step) for point in client.get_metric_history(run_id, f"recovery/{name}")}
        return _Log(client, run_id, logged, attaches_model=parent is None)

    def metrics(self, events: Sequence[Event]) -> None:
        """Log steps as `grounding/loss` and so on, validation as `grounding/val/loss`, and what a stage ended with as
        `grounding/best/loss`, each once; and how the run recovered as `recovery/...`, by attempt."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], list[Any]] = {}
        for event in events:
            if (told := _told(event)) and (told.place, told.step) not in self._logged:
                new[told.place, told.step] = [
                    Metric(f"{told.prefix}/{name.replace('@', '_at_')}", value, int(told.time * 1000), told.step)
                    for name, value in told.metrics.items()
                ]
        while new:
            part: dict[tuple[str, int], list[Any]] = {}
            while new and sum(map(len, part.values())) + len(next(iter(new.values()))) <= MOST_METRICS:
                place = next(iter(new))
                part[place] = new.pop(place)
            self._client.log_batch(self._run_id, metrics=[point for points in part.values() for point in points])
            self._logged |= part.keys()

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Attach what the run made, and close it."""
        if result is not None:
            self._client.log_dict(self._run_id, result, "result.json")
            if self._attaches_model:
                _attach_model(self._client, self._run_id, folder)
        self._client.set_terminated(self._run_id, status)


class SweepLog:
    """The MLflow run of a sweep, below which are those of its trials. What cannot be logged is said."""

    def __init__(self, settings: Settings, folder: Folder, known: Mapping[str, Any], warn: Callable[[str], None]):
        """Found by its tag, or made with what is known of the sweep as parameters."""
        self._settings, self._folder, self._warn = settings, folder, warn
        self.run_id: str | None = None
        with self._patiently():
            client, number = _client(settings)
            self.run_id = _found(client, number, folder) or _created(
                client, number, settings, folder, "groundray.sweep", known, {}
            )

    def close(self, metrics: Mapping[str, float], files: Sequence[str], finished: bool) -> None:
        """Attach what came out of the sweep, files of its folder by name, and close its run."""
        with self._patiently():
            client, _ = _client(self._settings)
            for name, value in metrics.items():
                client.log_metric(self.run_id, name.replace("@", "_at_"), value)
            with tempfile.TemporaryDirectory() as local:
                for name in files:
                    (Path(local) / name).write_bytes(self._folder.read_bytes(name))
                client.log_artifacts(self.run_id, local)
            client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")

    def register(self, trial: Folder, name: str, alias: str) -> str | None:
        """The number of the version of a registered model that a trial's model is, made if there is none yet, and then
        what `models:/NAME@ALIAS` means; None where that failed."""
        with self._patiently():
            client, number = _client(self._settings)
            run_id = _oldest(client, number, trial)
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
    def _patiently(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever tracking raises, the sweep goes on
            first = str(error).strip().splitlines() or [""]
            self._warn(f"tracking failed, the sweep goes on: {type(error).__name__}: {first[0]}")


def log_analysis(
    settings: Settings,
    folder: Folder,
    metrics: Mapping[str, float],
    files: Mapping[str, bytes],
    warn: Callable[[str], None],
) -> bool:
    """Add what an analysis found of a run's model to its MLflow run: metrics, and files below `analysis/`. What cannot
    be logged is said, and False returned."""
    from mlflow.entities import Metric

    try:
        client, number = _client(settings)
        run_id = _oldest(client, number, folder)
        if run_id is None:
            raise ValueError(f"no MLflow run of {folder} at {uri_of(settings)}: train with tracking.enabled true")
        now = int(time.time() * 1000)
        points = [Metric(_allowed(name), value, now, 0) for name, value in metrics.items()]
        for start in range(0, len(points), MOST_METRICS):
            client.log_batch(run_id, metrics=points[start : start + MOST_METRICS])
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                (Path(local) / name).write_bytes(content)
            client.log_artifacts(run_id, local, "analysis")
    except Exception as error:  # noqa: BLE001  whatever tracking raises, the analysis is there
        first = str(error).strip().splitlines() or [""]
        warn(f"tracking failed, the analysis is complete without it: {type(error).__name__}: {first[0]}")
        return False
    return True


def _allowed(name: str) -> str:
    """A metric's name of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def uri_of(settings: Settings) -> str:
    """Where a run is tracked, the same from every folder of this machine."""
    uri = settings.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}:///{Path(path).absolute()}" if slashes and scheme == "sqlite" else uri


def _client(settings: Settings) -> tuple[Any, str]:
    """MLflow's client, and the experiment of these settings, made if there is none."""
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "1"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow import MlflowClient  # takes seconds: only a run that is tracked pays, off the main thread

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it tells of each table that it makes
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    client = MlflowClient(uri_of(settings))
    experiment = client.get_experiment_by_name(settings.tracking.experiment)
    if experiment:
        return client, experiment.experiment_id
    return client, client.create_experiment(settings.tracking.experiment, tags=TRAINING_EXPERIMENT)


def _found(client: Any, experiment: str, folder: Folder) -> str | None:
    """The MLflow run of what is kept in a folder, running again; None if there is none yet."""
    run_id = _oldest(client, experiment, folder)
    if run_id:
        client.update_run(run_id, status="RUNNING")
    return run_id


def _oldest(client: Any, experiment: str, folder: Folder) -> str | None:
    """The MLflow run of what is kept in a folder. Of several, made by processes that did not know of each other, as a
    trial that is ended and the sweep that closes its run, the later ones are deleted: they hold nothing of their own.
    """
    found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{folder}'")
    first, *later = sorted((run.info.start_time, run.info.run_id) for run in found) or [(0, None)]
    for _, run_id in later:
        client.delete_run(run_id)
    return first[1]


def _created(
    client: Any,
    experiment: str,
    settings: Settings,
    folder: Folder,
    source: str,
    known: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """A new MLflow run, with what is known at the start as its parameters; or that of who was first."""
    from mlflow.entities import Param

    named = {RUN_TAG: str(folder), "mlflow.source.name": source, "git.commit": git_commit()}
    run_id = client.create_run(experiment, run_name=settings.run.name, tags={**named, **tags}).info.run_id
    if (first := _oldest(client, experiment, folder)) not in (None, run_id):
        return first
    parameters = [Param(name, str(value)) for name, value in known.items()]
    for start in range(0, len(parameters), MOST_PARAMETERS):
        client.log_batch(run_id, params=parameters[start : start + MOST_PARAMETERS])
    client.log_text(run_id, settings.to_yaml(), "config.yaml")
    return run_id


def _attach_model(client: Any, run_id: str, folder: Folder) -> None:
    with tempfile.TemporaryDirectory() as local:
        (folder / "model").download(Path(local))
        client.log_artifacts(run_id, local, "model")


class _Told(NamedTuple):
    """What is logged of an event: its metrics, below `prefix`; one event a `place` and step."""

    place: str
    prefix: str
    step: int
    time: float
    metrics: dict[str, float]


def _told(event: Event) -> _Told | None:
    match event:
        case StepDone() | EpochDone() | StageDone():
            prefix = event.stage + PLACES[type(event)]
            return _Told(prefix, prefix, event.step, event.time, event.metrics)
        case Attempted():
            metrics = {
                "attempts": float(event.number),
                "preemptions": float(event.preemptions),
                "repeated_steps": float(event.repeated_steps),
                "repeated_seconds": event.repeated_seconds,
            }
            return _Told("attempted", "recovery", event.number, time.time(), metrics)
        case Recovered():
            metrics = {"first_step_seconds": event.start_seconds, "down_seconds": event.down_seconds}
            return _Told("recovered", "recovery", event.number, time.time(), metrics)
    return None


def git_commit() -> str:
    """The commit of the working directory, with `-dirty` where files differ; `unknown` outside a checkout."""
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
