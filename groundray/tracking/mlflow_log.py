"""One MLflow run for each training run, owned by the driver and found again by the run's id when it resumes.

Each step is logged exactly once, however often it was repeated: what was lost because a driver or worker was killed, or
a server was down, is logged later from the run's own history. A tag of the MLflow run has the steps that it holds, and
every call that logs steps sets it; files of history whose steps are all logged are not read.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from groundray.config import Settings, flatten
from groundray.storage.folder import Folder
from groundray.tracking.models import attach_model
from groundray.tracking.store import MAX_METRICS, PARENT_TAG, Deleted, client_of, experiment_of, find_run, reopen
from groundray.training import history, recovery
from groundray.training.events import Attempted, EpochDone, Event, Recovered, StageDone, StepDone
from groundray.training.history import HistoryFile
from groundray.training.identity import Identity
from groundray.training.step_ranges import StepRanges

LOGGED_TAG = "groundray.logged"  # steps of each series, as ranges
MAX_TAG = 5000  # characters of a tag's value
UPLOAD_BYTES_PER_SECOND = 2**20  # a slower upload of the model counts as none
PREFIXES = {StepDone: "", EpochDone: "/val", StageDone: "/best"}  # of an event's metrics, after the stage's name
Status = Literal["FINISHED", "FAILED", "KILLED"]


class MlflowLog:
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
    ) -> MlflowLog:
        """Find the MLflow run of a training run by its id, or create it with the run's parameters.

        Args:
            progress: is called where there is progress, with the extra seconds that the next may take.
        """
        client = client_of(settings)
        experiment = experiment_of(client, settings)
        flat = {**dict(flatten(settings.model_dump(mode="json"))), "scaling.chunks": settings.chunks}
        known = flat | {f"data.{name}.fingerprint": value for name, value in run.fingerprints.items()}
        tags = {PARENT_TAG: parent} if parent else {}
        # missing if the server was down when the sweep started; the sweep's end finds this run by the tag above
        with contextlib.suppress(Deleted):  # the sweep reports it
            if parent and (sweep := find_run(client, settings, experiment, parent)):
                tags["mlflow.parentRunId"] = sweep
        run_id = reopen(client, experiment, settings, folder, run, "groundray.train", known, tags)
        return MlflowLog(client, run_id, settings, logged_steps(client, run_id, settings), parent is None, progress)

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
            if (entry := entry_of(event)) and entry.step not in self._logged[entry.series]:
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
                attach_model(self._client, self._run_id, folder)
                self._progress(0.0)
        self._client.set_terminated(self._run_id, status)


def describe_choice(choice: Mapping[str, Any]) -> str:
    """Return how a stage's weights were chosen (`TrainState.choice`) as a line."""
    where = f"epoch {choice['epoch']}, step {choice['step']} of {choice['last_step']}"
    return f"{where}, by {choice['by']}; {choice['ended']}"


def logged_steps(client: Any, run_id: str, settings: Settings) -> dict[str, StepRanges]:
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


class Entry(NamedTuple):
    """The metrics of an event, named `prefix/...`. There is one event for each series and step."""

    series: str
    prefix: str
    step: int
    time: float
    metrics: dict[str, float]


def entry_of(event: Event) -> Entry | None:
    match event:
        case StepDone() | EpochDone() | StageDone():
            prefix = event.stage + PREFIXES[type(event)]
            return Entry(prefix, prefix, event.step, event.time, event.metrics)
        case Attempted():
            metrics = {
                "attempts": float(event.number),
                "preemptions": float(event.preemptions),
                "repeated_steps": float(event.repeated_steps),
                "repeated_seconds": event.repeated_seconds,
            }
            return Entry("attempted", "recovery", event.number, time.time(), metrics)
        case Recovered():
            metrics = {"first_step_seconds": event.start_seconds, "down_seconds": event.down_seconds}
            return Entry("recovered", "recovery", event.number, time.time(), metrics)
    return None
