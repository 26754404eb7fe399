"""The end of a long run: MLflow gets what it lacks, the model and the status; what it has is not read again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import made_history
import mlflow
import pytest
import servers
from delayed_store import delayed
from made_history import STAGE
from mlflow.entities import Run
from search_fixtures import SearchPaths

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking import mlflow_log, tracker
from groundray.tracking.mlflow_log import LOGGED_TAG
from groundray.tracking.tracker import Tracker
from groundray.training import identity
from groundray.training.events import EpochDone, StageDone, StepDone

EPOCH_STEPS = 5


def settings(uri: str, epochs: int) -> Settings:
    return Settings(
        run={"name": "long"},
        stages=(STAGE,),
        grounding={"train": "t", "val": "v", "batch_size": 4, "epochs": epochs},
        tracking={"uri": uri, "experiment": "tests"},
    )  # type: ignore[arg-type]


class LongRun:
    """A run of files of 5 steps each, and what its tracker reads.

    Attributes:
        files: one for each checkpoint, and their events; two for each epoch, after the third step and at the end.
        read: names of the files of history that were read since `track` began.
    """

    def __init__(self, run: Folder, uri: str, epochs: int, monkeypatch: pytest.MonkeyPatch):
        self.run, self.settings, self.read = run.make(), settings(uri, epochs), list[str]()
        self.warnings: list[str] = []
        attempt = made_history.begin(self.run, 0, EPOCH_STEPS)
        self.files: dict[str, list[StepDone | EpochDone]] = {}
        parts: list[list[StepDone | EpochDone]] = []
        for epoch in range(epochs):
            first = epoch * EPOCH_STEPS
            for start, stop in ((1, 3), (4, EPOCH_STEPS)):
                parts.append(made_history.steps(first + start, first + stop, epochs * EPOCH_STEPS, EPOCH_STEPS))
        with ThreadPoolExecutor(16) as pool:
            names = pool.map(lambda events: made_history.write(attempt, events, EPOCH_STEPS), parts)
            self.files = dict(zip(names, parts, strict=True))
        plain = Folder.read_bytes

        def counted(folder: Folder, name: str) -> bytes:
            if name.endswith(".jsonl"):
                self.read.append(name)
            return plain(folder, name)

        monkeypatch.setattr(Folder, "read_bytes", counted)

    def track(self, events: list[Any], result: dict[str, Any] | None = None) -> None:
        """Track a session in which these events happen."""
        self.read.clear()
        run = identity.claim(self.run, self.settings, {})
        tracker = Tracker(self.settings, self.run, run, self.warnings.append)
        for event in events:
            tracker.observe(event)
        tracker.close(result, "FINISHED" if result else "KILLED")

    def events(self) -> list[StepDone | EpochDone]:
        return [event for events in self.files.values() for event in events]

    def logged(self) -> tuple[Run, list[int], list[int]]:
        """Return the MLflow run, and the steps and the validations that it has."""
        client = mlflow.MlflowClient(self.settings.tracking.uri)
        experiment = client.get_experiment_by_name("tests")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        steps, epochs = (
            [point.step for point in client.get_metric_history(found.info.run_id, f"{STAGE}{kind}/loss")]
            for kind in ("", "/val")
        )
        return found, sorted(steps), sorted(epochs)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracker, "FLUSH_SECONDS", 0.1)
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_only_files_with_something_new_are_read(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver logs a run; then one misses some steps, and one resumes: MLflow has every event once all along."""
    epochs = 30
    long = LongRun(Folder.at(tmp_path / "runs" / "long"), uri, epochs, monkeypatch)
    names, events = list(long.files), long.events()
    lost = [event for name in (names[20], names[31]) for event in long.files[name]]
    for name in names:  # an attempt has written none when its driver starts
        Path(long.run.path, "history", name).rename(tmp_path / name)

    first, second = events[: len(events) // 2], events[len(events) // 2 :]
    long.track([event for event in first if event not in lost])
    assert long.read == []
    for name in names:
        (tmp_path / name).rename(Path(long.run.path, "history", name))
    long.track([event for event in second if event not in lost], {"stages": {}})
    found, steps, validated = long.logged()
    assert found.info.status == "FINISHED"
    assert steps == list(range(1, epochs * EPOCH_STEPS + 1))
    assert validated == list(range(EPOCH_STEPS, epochs * EPOCH_STEPS + 1, EPOCH_STEPS))
    ranges = json.loads(found.data.tags[LOGGED_TAG])
    assert ranges[STAGE] == [[1, epochs * EPOCH_STEPS + 1, 1]]
    assert ranges[f"{STAGE}/val"] == [[EPOCH_STEPS, epochs * EPOCH_STEPS + 1, EPOCH_STEPS]]

    monkeypatch.setattr(mlflow.MlflowClient, "get_metric_history", lambda *_: pytest.fail("asks for all points"))
    long.track([], {"stages": {}})
    assert len(long.read) <= 2  # the first files tell how many steps an epoch has
    assert long.warnings == []


def test_steps_that_a_killed_call_logged_without_the_tag_are_found(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were done again, at another time, by the attempt that follows."""
    long = LongRun(Folder.at(tmp_path / "runs" / "long"), uri, 4, monkeypatch)
    long.track([])
    client, (found, steps, _) = mlflow.MlflowClient(uri), long.logged()
    assert steps == list(range(1, 21))
    client.log_metric(found.info.run_id, f"{STAGE}/loss", 1.0, timestamp=10**12, step=21)
    long.track([StepDone(STAGE, 4, 21, 25, {"loss": 1.0}), StepDone(STAGE, 4, 22, 25, {"loss": 1.0})])
    assert long.logged()[1] == list(range(1, 23))
    client.set_tag(found.info.run_id, LOGGED_TAG, "")  # as an earlier version has none
    long.track([StepDone(STAGE, 4, 22, 25, {"loss": 2.0}), StageDone(STAGE, 22, {"loss": 1.0})])
    assert long.logged()[1] == list(range(1, 23))


@pytest.mark.parametrize("gets_through", [True, False])
def test_the_end_waits_while_there_is_progress(
    tmp_path: Path, uri: str, gets_through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call takes a part of the time after which a server without an answer is given up, all take longer."""
    long = LongRun(Folder.at(tmp_path / "runs" / "long"), uri, 8, monkeypatch)
    long.track([long.events()[0]])  # imports what takes seconds
    monkeypatch.setattr(tracker, "CLOSE_TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(mlflow_log, "MAX_METRICS", 8)
    plain = mlflow.MlflowClient.log_batch

    def slow(client: Any, *words: Any, **options: Any) -> None:
        time.sleep(0.5 if gets_through else 6)
        plain(client, *words, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", slow)
    steps = [StepDone(STAGE, 8, step, 80, {"loss": 1.0, "seconds": 1.0}) for step in range(41, 71)]
    began = time.monotonic()
    long.track(steps, {"stages": {}})
    if gets_through:
        assert time.monotonic() - began > 3
        assert long.logged()[0].info.status == "FINISHED"
        assert len(long.logged()[1]) == 70
    else:
        assert any("no answer within 3 s" in warning for warning in long.warnings)


def test_a_signal_ends_the_wait(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = LongRun(Folder.at(tmp_path / "runs" / "long"), uri, 2, monkeypatch)

    class Interrupted(Tracker):
        def __init__(self, *words: Any):
            super().__init__(*words)
            (thread,) = self._threads
            self.thread = thread._thread
            self.thread.join = self._interrupt  # type: ignore[method-assign]

        def _interrupt(self, timeout: float | None = None) -> None:
            raise KeyboardInterrupt

    tracker = Interrupted(long.settings, long.run, identity.claim(long.run, long.settings, {}), long.warnings.append)
    tracker.close({"stages": {}})
    assert len(long.warnings) == 1
    assert "rerun the same command to log the rest" in long.warnings[0]
    type(tracker.thread).join(tracker.thread)  # before its folder is gone


@pytest.fixture
def distant(monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Server]:
    """An S3 store whose answers take 50 ms longer. Its key is not checked against a policy."""
    with servers.s3() as store:
        store.use(monkeypatch)
        with delayed(store.environment["AWS_ENDPOINT_URL"], 0.05) as endpoint:
            store.environment["AWS_ENDPOINT_URL_S3"] = endpoint
            yield store


@pytest.mark.slow
@pytest.mark.parametrize("is_logged", [True, False], ids=["all logged", "nothing logged"])
def test_the_end_of_a_run_with_3000_files_on_a_distant_store(
    tmp_path: Path,
    uri: str,
    distant: servers.Server,
    place: SearchPaths,
    is_logged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Measured before, with 340 files: no answer within 60 s, the status RUNNING and no model."""
    url, epochs = distant.folder(), 1500
    long = LongRun(Folder.at(url), uri, epochs, monkeypatch)
    (long.run / "model").upload(Path(place.checkpoint))
    distant.use(monkeypatch)
    long.run = Folder.at(url)
    identity.claim(long.run, long.settings, {})
    began = time.monotonic()
    if is_logged:
        events = long.events()
        long.track([], None)
        began = time.monotonic()
        assert len(events) == epochs * (EPOCH_STEPS + 1)
    long.track([], {"stages": {}})
    seconds = time.monotonic() - began
    found, steps, _ = long.logged()
    print(f"{seconds:.1f} s, {len(long.read)} files read, {len(steps)} steps, {found.info.status}")
    assert found.info.status == "FINISHED"
    assert steps == list(range(1, epochs * EPOCH_STEPS + 1))
    client = mlflow.MlflowClient(uri)
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert model.status == "READY"
    assert [told for told in long.warnings if "still logging" not in told] == []
    assert seconds < 60 or not is_logged
