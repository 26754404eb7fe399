"""MLflow: one MLflow run for each training run, owned by the driver and found again by the run's id when it resumes.

The id is in the run's folder (`training/identity.py`) and in the tag `groundray.run_id`. A path finds no MLflow run: a
folder that is deleted and used again holds another run. No MLflow run of another id is changed or deleted.

Each step is logged exactly once, however often it was repeated: what was lost because a driver or worker was killed, or
a server was down, is logged later from the run's own history. A tag of the MLflow run has the steps that it holds, and
every call that logs steps sets it; files of history whose steps are all logged are not read.

All calls happen on a separate thread with a timeout, so a tracking server that is slow or down never delays or ends a
training run. Its end waits as long as what is left is being logged. The first failure is reported when it happens, and
the number of events that could not be logged at the end. Passwords of a server are taken from the environment and
hidden in every message.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import queue
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from groundray.config import Settings, flatten
from groundray.credentials import TRACKING_URI, redacted, without_secrets
from groundray.storage.folder import Folder
from groundray.training import history, identity, layout, recovery
from groundray.training.events import Attempted, EpochDone, Event, Recovered, StageDone, StepDone
from groundray.training.history import HistoryFile
from groundray.training.identity import Identity
from groundray.training.step_ranges import StepRanges
from groundray.versions import code_version, library_versions, version_of

DEFAULT_URI = "sqlite:///mlflow.db"
LOGGED_TAG = "groundray.logged"  # steps of each series, as ranges
MAX_TAG = 5000  # characters of a tag's value
ID_TAG, PARENT_TAG = "groundray.run_id", "groundray.sweep_id"
FOLDER_TAG = "groundray.run"  # for people; earlier versions found a run by it
TRAINING_EXPERIMENT = {
    "mlflow.experimentKind": "custom_model_development"
}  # MLflow's page then opens on runs and curves
FLUSH_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 60.0  # without progress
UPLOAD_BYTES_PER_SECOND = 2**20  # a slower upload of the model counts as none
CHECK_SECONDS = 15.0  # for the answer of a server before a run starts
MAX_METRICS = 999  # in one call, with a tag: limits of MLflow
MAX_PARAMETERS = 100
PREFIXES = {StepDone: "", EpochDone: "/val", StageDone: "/best"}  # of an event's metrics, after the stage's name
RELOG = "rerun the same command to log the rest"
Status = Literal["FINISHED", "FAILED", "KILLED"]
STATUSES: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED"}  # of a trial; any other was stopped


class Deleted(ValueError):
    """The experiment or the run was deleted in MLflow; the message has the repair."""


def _run_id(settings: Settings) -> str | None:
    """Return the id of the run of these settings, None if it has not started."""
    run = identity.read(layout.folder_of(settings))
    return run.id if run else None


class Inquiry:
    """Asks, while other checks of a run are made, whether its experiment or its MLflow run was deleted."""

    def __init__(self, settings: Settings, get_id: Callable[[Settings], str | None] = _run_id):
        """Ask in a thread; do nothing if the run is not tracked.

        Args:
            get_id: returns the id of the run, or of a sweep; None if it has not started.
        """
        self._settings, self._get_id = settings, get_id
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._ask, name="groundray-tracking-check", daemon=True)
        if settings.tracking.enabled and _store_exists(settings):
            self._thread.start()

    def problem(self) -> str | None:
        """Return what was deleted, with the repair. None if nothing was, or if there is no answer: a run that starts
        reports a server that cannot be reached, and what it misses is logged later."""
        if self._thread.ident:
            self._thread.join(CHECK_SECONDS)
        return self._problem

    def _ask(self) -> None:
        try:
            client = _client(self._settings)
            experiment = _experiment(client, self._settings, create=False)
            if experiment and (run_id := self._get_id(self._settings)):
                _find_run(client, self._settings, experiment, run_id)
        except Deleted as error:
            self._problem = str(error)
        except Exception:  # reported when the run starts
            logging.getLogger(__name__).debug("no answer from the tracking server", exc_info=True)


class Tracker:
    """Logs a training run to MLflow; every method returns at once, except `close`."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        run: Identity,
        warn: Callable[[str], None],
        parent: str | None = None,
    ):
        """Start to track the run in a folder.

        Args:
            run: the run's identity.
            warn: takes a line for each problem.
            parent: id of the sweep whose MLflow run is the parent. A run that has one does not log its model.
        """
        self._settings, self._folder, self._run, self._warn = settings, folder, run, warn
        self._parent = parent
        self._jobs: queue.Queue[Event | dict[str, Any] | None] = queue.Queue()
        self._lost = 0
        self._deadline = 0.0  # of the next progress
        self._thread = threading.Thread(target=self._work, name="groundray-tracking", daemon=True)
        self._thread.start()

    def observe(self, event: Event) -> None:
        """Log the metrics of an event."""
        self._jobs.put(event)

    def close(self, result: dict[str, Any] | None, status: Status = "FINISHED") -> None:
        """End the MLflow run. Waits until all is logged, as long as each CLOSE_TIMEOUT_SECONDS bring progress.

        A signal that interrupts the wait ends it with a warning.
        """
        self._jobs.put({"result": result, "status": status})
        self._jobs.put(None)
        self._progress()
        started, told = time.monotonic(), False
        try:
            while self._thread.is_alive() and (left := self._deadline - time.monotonic()) > 0:
                self._thread.join(min(left, CLOSE_TIMEOUT_SECONDS))
                if self._thread.is_alive() and not told and time.monotonic() - started >= CLOSE_TIMEOUT_SECONDS:
                    told = True
                    self._warn(f"tracking: still logging what the server lacks; Ctrl-C ends it, and {RELOG}")
        except KeyboardInterrupt:
            self._warn(f"tracking: stopped before all was logged; the run itself is complete, {RELOG}")
            return
        if self._thread.is_alive():
            self._warn(f"tracking: no answer within {CLOSE_TIMEOUT_SECONDS:.0f} s; the run itself is complete, {RELOG}")
        elif self._lost:
            self._warn(f"tracking: {self._lost} events could not be logged; the run itself is complete")

    def _progress(self, seconds: float = 0.0) -> None:
        """Note that there was progress, and that the next may take so many seconds more than CLOSE_TIMEOUT_SECONDS."""
        self._deadline = time.monotonic() + CLOSE_TIMEOUT_SECONDS + seconds

    def _work(self) -> None:
        log: _Log | None = None
        closed = False
        while not closed:
            batch, closed = self._next_batch()
            try:
                opened = log is None
                log = log or _Log.open(self._settings, self._folder, self._run, self._parent, self._progress)
                if opened or any(isinstance(job, dict | Attempted) for job in batch):  # events may be missing
                    log.catch_up(self._folder, self._warn)
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

    def __init__(
        self,
        client: Any,
        run_id: str,
        settings: Settings,
        logged: dict[str, StepRanges],
        attaches_model: bool,
        progress: Callable[[float], None],
    ):
        self._client, self._run_id, self._settings, self._logged = client, run_id, settings, logged
        self._attaches_model, self._progress = attaches_model, progress
        self._epoch_steps: dict[str, int] = {}  # steps of an epoch, by stage

    @staticmethod
    def open(
        settings: Settings,
        folder: Folder,
        run: Identity,
        parent: str | None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> _Log:
        """Find the MLflow run of a training run by its id, or create it with the run's parameters.

        Args:
            progress: is called where there is progress, with the extra seconds that the next may take.
        """
        client = _client(settings)
        experiment = _experiment(client, settings)
        flat = {**dict(flatten(settings.model_dump(mode="json"))), "scaling.chunks": settings.chunks}
        known = flat | {f"data.{name}.fingerprint": value for name, value in run.fingerprints.items()}
        tags = {PARENT_TAG: parent} if parent else {}
        # missing if the server was down when the sweep started; the sweep's end finds this run by the tag above
        with contextlib.suppress(Deleted):  # the sweep reports it
            if parent and (sweep := _find_run(client, settings, experiment, parent)):
                tags["mlflow.parentRunId"] = sweep
        run_id = _reopen(client, experiment, settings, folder, run, "groundray.train", known, tags)
        return _Log(client, run_id, settings, _logged_steps(client, run_id, settings), parent is None, progress)

    def catch_up(self, folder: Folder, warn: Callable[[str], None]) -> None:
        """Log what the files of a run have and MLflow lacks. Files of which MLflow has all are not read."""
        self.metrics(event for event, _ in history.read(folder, warn, self._lacks))
        self.metrics(recovery.recoveries(folder, self._logged["recovered"]))

    def _lacks(self, file: HistoryFile) -> bool:
        """Return False if MLflow has all events of a file of history, as far as its name tells."""
        self._progress(0.0)
        if file.stage not in self._settings.stages:
            return True
        steps, validated, best = (self._logged[file.stage + suffix] for suffix in PREFIXES.values())
        if file.until is None:
            return best.last < 0
        epoch_steps = self._epoch_steps.get(file.stage)
        if not file.after or not epoch_steps:
            return True
        first, last = (cursor.epoch * epoch_steps + cursor.step for cursor in (file.after, file.until))
        ends = (end * epoch_steps for end in range(file.after.epoch + 1, file.until.epoch + 1))
        # one at an edge may be in this file or in its neighbour
        every = self._settings.stage(file.stage).validate_every_steps
        within = (
            step for step in range(first, last + 1) if every and (inside := step % epoch_steps) and not inside % every
        )
        return not (
            all(step in steps for step in range(first + 1, last + 1))
            and all(step in validated for step in (*ends, *within))
        )

    def metrics(self, events: Iterable[Event]) -> None:
        """Log each event once: steps as `grounding/loss`, validation as `grounding/val/loss`, a stage's best weights as
        `grounding/best/loss`, and recovery as `recovery/...` with the attempt's number as the step."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], list[Any]] = {}
        for event in events:
            self._progress(0.0)
            if isinstance(event, StepDone):
                epochs = self._settings.stage(event.stage).epochs
                self._epoch_steps[event.stage] = 0 if event.steps % epochs else event.steps // epochs
            if (entry := _entry(event)) and entry.step not in self._logged[entry.series]:
                points = [
                    Metric(f"{entry.prefix}/{name.replace('@', '_at_')}", value, int(entry.time * 1000), entry.step)
                    for name, value in entry.metrics.items()
                ]
                if sum(map(len, new.values())) + len(points) > MAX_METRICS:
                    self._send(new)
                    new = {}
                new[entry.series, entry.step] = points
        if new:
            self._send(new)

    def _send(self, new: Mapping[tuple[str, int], Sequence[Any]]) -> None:
        """Log points by series and step, and the tag that tells which there are."""
        from mlflow.entities import RunTag

        logged = copy.deepcopy(self._logged)
        for series, step in new:
            logged[series].add(step)
        tag = json.dumps({series: steps.as_json() for series, steps in logged.items()}, separators=(",", ":"))
        points = [point for each in new.values() for point in each]
        tags = [RunTag(LOGGED_TAG, tag if len(tag) <= MAX_TAG else "")]
        self._client.log_batch(self._run_id, metrics=points, tags=tags)
        self._logged = logged
        self._progress(0.0)

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Log the result and the model, and end the MLflow run."""
        if result is not None:
            self._client.log_dict(self._run_id, result, "result.json")
            for stage, choice in result.get("best", {}).items():
                self._client.set_tag(self._run_id, f"{stage}.best", describe_choice(choice))
            if self._attaches_model:
                size = sum((folder / "model").sizes().values())
                self._progress(size / UPLOAD_BYTES_PER_SECOND)
                _attach_model(self._client, self._run_id, folder)
                self._progress(0.0)
        self._client.set_terminated(self._run_id, status)


def describe_choice(choice: Mapping[str, Any]) -> str:
    """Return how a stage's weights were chosen (`TrainState.choice`) as a line."""
    where = f"epoch {choice['epoch']}, step {choice['step']} of {choice['last_step']}"
    return f"{where}, by {choice['by']}; {choice['ended']}"


def _logged_steps(client: Any, run_id: str, settings: Settings) -> dict[str, StepRanges]:
    """Return the steps that an MLflow run has of each series."""
    keys = {stage + suffix: f"{stage}{suffix}/loss" for stage in settings.stages for suffix in PREFIXES.values()}
    keys |= {"attempted": "recovery/attempts", "recovered": "recovery/first_step_seconds"}
    run = client.get_run(run_id)
    newest = {metric.key: metric.step for metric in run.to_proto().data.metrics}
    try:
        tag = json.loads(run.data.tags[LOGGED_TAG])
        logged = {series: StepRanges.parse(tag[series]) for series in keys}
        if all(newest.get(key, -1) <= logged[series].last for series, key in keys.items()):
            return logged
    except (KeyError, ValueError, TypeError):
        pass
    # an earlier version logged some, or a call was interrupted before it set the tag
    return {
        series: StepRanges(sorted(point.step for point in client.get_metric_history(run_id, key)))
        if key in newest
        else StepRanges()
        for series, key in keys.items()
    }


class SweepLog:
    """The MLflow run of a sweep, the parent of its trials' runs. What cannot be logged is reported as a warning, and
    logged at the sweep's end or when it resumes."""

    def __init__(
        self, settings: Settings, folder: Folder, sweep: Identity, known: Mapping[str, Any], warn: Callable[[str], None]
    ):
        """Find the MLflow run by the sweep's id, or create it with the parameters `known`."""
        self._settings, self._folder, self._known, self._warn = settings, folder, known, warn
        self._identity = sweep
        with self._warned():
            self._open()

    def close(
        self,
        metrics: Mapping[str, float],
        files: Sequence[str],
        runs: Mapping[str, Status],
        finished: bool,
    ) -> None:
        """Log what the runs of the sweep could not, attach what came out of the sweep, and close its MLflow run.

        Args:
            files: names of files of the sweep's folder.
            runs: the status of each run that was started, by its folder's name in the sweep's.
        """
        repair = "rerun the same command with --resume to log the rest"
        with self._warned(repair):
            client, run_id = self._open()
            for name, status in runs.items():
                with self._warned(repair):  # a run that is damaged, or deleted in MLflow, spoils only itself
                    _catch_up(client, self._settings, self._folder / name, self._identity.id, status, self._warn)
            for name, value in metrics.items():
                client.log_metric(run_id, name.replace("@", "_at_"), value)
            with tempfile.TemporaryDirectory() as local:
                for name in files:
                    (Path(local) / name).write_bytes(self._folder.read_bytes(name))
                client.log_artifacts(run_id, local)
            client.set_terminated(run_id, "FINISHED" if finished else "KILLED")

    def register(self, trial: Folder, name: str, alias: str) -> str | None:
        """Register a trial's model, let `models:/NAME@ALIAS` refer to it, and return its version; None if that failed.

        A model that is registered already keeps its version.
        """
        with self._warned():
            from mlflow.exceptions import MlflowException

            client = _client(self._settings)
            run = identity.read(trial)
            experiment = _experiment(client, self._settings)
            run_id = _find_run(client, self._settings, experiment, run.id) if run else None
            if run_id is None:
                raise ValueError(f"{trial} has no MLflow run")
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
                _attach_model(client, run_id, trial)
                source = f"{client.get_run(run_id).info.artifact_uri}/model"
                versions = [client.create_model_version(name, source, run_id)]
            client.set_registered_model_alias(name, alias, versions[0].version)
            return str(versions[0].version)
        return None

    def _open(self) -> tuple[Any, str]:
        """Return MLflow's client, and the id of the sweep's MLflow run, which is created if it does not exist."""
        client = _client(self._settings)
        experiment = _experiment(client, self._settings)
        return client, _reopen(
            client, experiment, self._settings, self._folder, self._identity, "groundray.sweep", self._known, {}
        )

    @contextlib.contextmanager
    def _warned(self, repair: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  whatever tracking raises, the sweep continues
            later = f"; {repair}" if repair else ""
            self._warn(f"tracking failed, the sweep continues: {_one_line(error)}{later}")


def _catch_up(
    client: Any, settings: Settings, folder: Folder, sweep_id: str, status: Status, warn: Callable[[str], None]
) -> None:
    """Log what a run of a sweep could not log itself, and close its MLflow run."""
    run = identity.read(folder)
    if run is None:
        return
    run = identity.claim(folder, run.settings, run.fingerprints)  # a copy is not the run that it was copied from
    experiment = _experiment(client, settings)
    logged = _find_run(client, settings, experiment, run.id)
    if logged and status == "FINISHED":
        done = client.get_run(logged)
        if done.info.status == status and "mlflow.parentRunId" in done.data.tags:
            return
    own = run.settings.model_copy(update={"tracking": settings.tracking})
    log = _Log.open(own, folder, run, sweep_id)
    log.catch_up(folder, warn)
    result = layout.read_result(folder) if status == "FINISHED" else None
    log.end(result, status, folder)


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
        client = _client(settings)
        experiment = _experiment(client, settings)
        run = identity.read(folder)
        run_id = _find_run(client, settings, experiment, run.id) if run else None
        if run is None or run.adopted:
            run_id = run_id or _adopted(client, experiment, folder, settings)
        if run_id is None:
            raise ValueError(
                f"no MLflow run of {folder} at {redacted(uri_of(settings))}: train with tracking.enabled true"
            )
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
    """Return the type and the first line of an exception, without secrets."""
    line = (str(error).strip().splitlines() or [""])[0]
    return redacted(line if isinstance(error, Deleted) else f"{type(error).__name__}: {line}")


def _metric_name(name: str) -> str:
    """Return a metric's name with only the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"), flags=re.ASCII)


def uri_of(settings: Settings) -> str:
    """Return the tracking URI of a run, which means the same in every folder of this machine. It may have a password,
    if it comes from the environment: only MLflow's client gets it."""
    given, environment = settings.tracking.uri, os.environ.get(TRACKING_URI)
    if environment and given in (None, without_secrets(environment)):
        given = environment
    uri = given or DEFAULT_URI
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}:///{Path(path).absolute()}" if slashes and scheme == "sqlite" else uri


def written_uri(settings: Settings) -> str:
    """Return the tracking URI for settings that are written: without secrets. Where the environment has the same URI
    with them, `uri_of` gives that one."""
    return without_secrets(uri_of(settings))


def _store_exists(settings: Settings) -> bool:
    """Return False if the runs are stored in a local file or folder that does not exist. Asking would create it."""
    scheme, _, path = uri_of(settings).partition("://")
    if scheme == "sqlite":
        return Path(path.removeprefix("/").partition("?")[0]).exists()
    return Path(path).exists() if scheme == "file" else "://" in uri_of(settings)


def _client(settings: Settings) -> Any:
    """Return MLflow's client."""
    for name, value in {"TIMEOUT": "10", "MAX_RETRIES": "1"}.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow import MlflowClient  # takes seconds, so only a tracked run imports it, off the main thread

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it logs each table that it creates
    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)
    return MlflowClient(uri_of(settings))


def _experiment(client: Any, settings: Settings, create: bool = True) -> str:
    """Return the id of the settings' experiment. If it does not exist, create it, or return an empty string.

    Raises:
        Deleted: it was deleted.
    """
    name = settings.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment and experiment.lifecycle_stage == "deleted":
        raise Deleted(
            f"tracking.experiment: the MLflow experiment {name} was deleted: restore it with "
            f"`{_command(settings)} experiments restore -x {experiment.experiment_id}`, or use another: "
            "--tracking.experiment ANOTHER"
        )
    if experiment:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, tags=TRAINING_EXPERIMENT)) if create else ""


def _command(settings: Settings) -> str:
    """Return the command `mlflow` for the settings' server, as it can be pasted into a shell."""
    return f"{TRACKING_URI}={shlex.quote(redacted(uri_of(settings)))} mlflow"


def _find_run(client: Any, settings: Settings, experiment: str, run_id: str) -> str | None:
    """Return the id of the MLflow run that has a run's id, None if there is none.

    Two processes of one run may have created it at the same time, as a stopped trial and the sweep that closes its run.
    Then both use the oldest, and one that holds no metrics is deleted.

    Raises:
        Deleted: it was deleted.
    """
    from mlflow.entities import ViewType

    same = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{run_id}'", ViewType.ALL)
    ordered = sorted(same, key=lambda run: (run.info.start_time, run.info.run_id))
    active = [run for run in ordered if run.info.lifecycle_stage == "active"]
    if ordered and not active:
        raise Deleted(
            f"the MLflow run of this run was deleted: restore it with `{_command(settings)} runs restore --run-id "
            f"{ordered[0].info.run_id}`, or log to another experiment: --tracking.experiment ANOTHER"
        )
    for later in active[1:]:
        if not later.data.metrics:
            client.delete_run(later.info.run_id)
    return active[0].info.run_id if active else None


def _adopted(client: Any, experiment: str, folder: Folder, settings: Settings) -> str | None:
    """Return the id of the MLflow run that an earlier version created for a folder, by its path; None if there is none.

    It must be of the same settings: an earlier version also logged a later run in the same folder to it.
    """
    ours = {name: str(value) for name, value in settings.identity().items()}
    token = None
    while token != "":
        page = client.search_runs([experiment], "tags.`mlflow.source.name` LIKE 'groundray.%'", page_token=token)
        for run in page:
            theirs = run.data.params
            same = all(theirs.get(name, value) == value for name, value in ours.items())
            if run.data.tags.get(FOLDER_TAG) == str(folder) and ID_TAG not in run.data.tags and same:
                return str(run.info.run_id)
        token = page.token or ""
    return None


def _reopen(
    client: Any,
    experiment: str,
    settings: Settings,
    folder: Folder,
    run: Identity,
    source: str,
    known: Mapping[str, Any],
    tags: Mapping[str, str],
) -> str:
    """Return the id of the MLflow run of a run, set to running, with all parameters and tags; create it if needed."""
    from mlflow.entities import Param, RunTag

    run_id = _find_run(client, settings, experiment, run.id)
    if run_id is None and run.adopted:
        run_id = _adopted(client, experiment, folder, settings)
    own = {ID_TAG: run.id, **tags}
    if run_id is None:
        versions = {"mlflow-skinny": version_of("mlflow-skinny"), "groundray": version_of("groundray")}
        versions |= library_versions()
        described = {FOLDER_TAG: str(folder), "mlflow.source.name": source, "git.commit": code_version()}
        described |= {f"version.{name}": version for name, version in versions.items()}
        created = client.create_run(experiment, run_name=settings.run.name, tags={**described, **own})
        run_id = _find_run(client, settings, experiment, run.id) or str(created.info.run_id)
    else:
        client.update_run(run_id, status="RUNNING")
    logged = client.get_run(run_id).data
    missing = [Param(name, str(value)) for name, value in known.items() if name not in logged.params]
    for start in range(0, len(missing), MAX_PARAMETERS):
        client.log_batch(run_id, params=missing[start : start + MAX_PARAMETERS])
    if changed := [RunTag(name, value) for name, value in own.items() if logged.tags.get(name) != value]:
        client.log_batch(run_id, tags=changed)
    if missing:
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
