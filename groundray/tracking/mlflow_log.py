"""One MLflow run for each training run, owned by the driver and found again by the run's id when it resumes.

Each step is logged exactly once, however often it was repeated: what was lost because a driver or worker was killed, or
a server was down, is logged later from the run's own history. A tag of the MLflow run has the steps that it holds, and
every call that logs steps sets it; files of history whose steps are all logged are not read.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking.data_sets import log_data_sets
from groundray.tracking.description import configuration_of
from groundray.tracking.logged_steps import LoggedSteps, series_of
from groundray.tracking.models import attach_model
from groundray.tracking.protocol import Status
from groundray.tracking.store import (
    CHILD_TAG,
    MAX_METRICS,
    PARENT_TAG,
    Deleted,
    client_of,
    experiment_of,
    find_run,
    one_line,
    reopen,
)
from groundray.tracking.system_metrics import monitor
from groundray.training.events import Event
from groundray.training.identity import Identity
from groundray.training.step_ranges import StepRanges

LOGGED_TAG = "groundray.logged"  # steps of each series, as ranges
MAX_TAG = 5000  # characters of a tag's value


class MlflowLog:
    """An MLflow run that is open for writing."""

    def __init__(
        self,
        client: Any,
        run_id: str,
        logged: LoggedSteps,
        log_inputs: Callable[[], None],
        attaches_model: bool,
        progress: Callable[[float], None],
        monitor: Any | None,
    ):
        self._client, self._run_id, self._logged = client, run_id, logged
        self._log_inputs: Callable[[], None] | None = log_inputs
        self._attaches_model, self._progress, self._monitor = attaches_model, progress, monitor

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
        known = configuration_of(settings, run)
        tags = {PARENT_TAG: parent} if parent else {}
        # missing if the server was down when the sweep started; the sweep's end finds this run by the tag above
        with contextlib.suppress(Deleted):  # the sweep reports it
            if parent and (sweep := find_run(client, settings, experiment, parent)):
                tags[CHILD_TAG] = sweep
        run_id = reopen(client, experiment, settings, folder, run, "groundray.train", known, tags)
        logged = LoggedSteps(settings, logged_steps(client, run_id, settings), progress)
        log_inputs = partial(log_data_sets, client, run_id, settings, run)
        return MlflowLog(client, run_id, logged, log_inputs, parent is None, progress, monitor(settings, run_id))

    def catch_up(self, folder: Folder, warn: Callable[[str], None]) -> None:
        """Log what the files of a run have and MLflow lacks. Files of which MLflow has all are not read.

        A server that does not take the data sets still gets the rest, with a warning.
        """
        if log_inputs := self._log_inputs:
            self._log_inputs = None
            try:
                log_inputs()
            except Exception as error:  # noqa: BLE001  whatever MLflow raises, the rest is logged
                warn(f"tracking in MLflow: the data sets could not be logged as inputs: {one_line(error)}")
        self.metrics(self._logged.missed(folder, warn))

    def metrics(self, events: Iterable[Event]) -> None:
        """Log each event once, with the names of `logged_steps.Entry`."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], list[Any]] = {}
        for entry in self._logged.missing(events):
            points = [Metric(name, value, int(entry.time * 1000), entry.step) for name, value in entry.metrics.items()]
            if sum(map(len, new.values())) + len(points) > MAX_METRICS:
                self._send(new)
                new = {}
            new[entry.series, entry.step] = points
        if new:
            self._send(new)

    def _send(self, new: Mapping[tuple[str, int], Sequence[Any]]) -> None:
        """Log points by series and step, and the tag that tells which there are."""
        from mlflow.entities import RunTag

        logged = copy.deepcopy(self._logged.steps)
        for series, step in new:
            logged[series].add(step)
        tag = json.dumps({series: steps.as_json() for series, steps in logged.items()}, separators=(",", ":"))
        points = [point for each in new.values() for point in each]
        tags = [RunTag(LOGGED_TAG, tag if len(tag) <= MAX_TAG else "")]
        self._client.log_batch(self._run_id, metrics=points, tags=tags)
        self._logged.steps = logged
        self._progress(0.0)

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Log the result and the model, and end the MLflow run."""
        self.release()
        if result is not None:
            self._client.log_dict(self._run_id, result, "result.json")
            for stage, choice in result.get("best", {}).items():
                self._client.set_tag(self._run_id, f"{stage}.best", describe_choice(choice))
        try:
            if result is not None and self._attaches_model:
                attach_model(self._client, self._run_id, folder, self._progress)
        finally:  # the run has ended, whatever becomes of its model
            self._client.set_terminated(self._run_id, status)

    def release(self) -> None:
        """End the monitor of system metrics."""
        if self._monitor:
            self._monitor.finish()


def describe_choice(choice: Mapping[str, Any]) -> str:
    """Return how a stage's weights were chosen (`TrainState.choice`) as a line."""
    where = f"epoch {choice['epoch']}, step {choice['step']} of {choice['last_step']}"
    return f"{where}, by {choice['by']}; {choice['ended']}"


def logged_steps(client: Any, run_id: str, settings: Settings) -> dict[str, StepRanges]:
    """Return the steps that an MLflow run has of each series."""
    keys = series_of(settings)
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
