"""Tracking: what MLflow contains after a run, and that failures of tracking do not end a run."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from groundray import tracking
from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking import Tracker
from groundray.training import attempts, history
from groundray.training.attempts import Attempt
from groundray.training.events import Attempted, EpochDone, Recovered, StepDone
from groundray.training.recovery import Start


def settings(uri: str) -> Settings:
    return Settings(
        run={"name": "tracked"},
        stages=("grounding",),
        grounding={"train": "t", "val": "v", "batch_size": 4},
        tracking={"uri": uri, "experiment": "tests"},
    )  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder.at(tmp_path / "runs" / "tracked").make()
    (folder / "model").make().write_bytes("groundray.json", b"{}")
    return folder


def track(uri: str, folder: Folder, steps: range) -> list[str]:
    """Track some steps and return the warnings."""
    warnings: list[str] = []
    tracker = Tracker(settings(uri), folder, {"grounding.train": "abc"}, warnings.append)
    for step in steps:
        tracker.observe(StepDone("grounding", 0, step, 10, {"loss": 1.0 / step}))
    tracker.observe(EpochDone("grounding", 0, 1, steps[-1], True, {"loss": 1.0, "text_to_image/recall@10": 0.5}))
    tracker.close({"stages": {}})
    return warnings


def only_run(uri: str) -> tuple[mlflow.MlflowClient, Run]:
    """Return MLflow's client and the only run of the tests' experiment."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def test_a_run_and_its_resume_are_one_mlflow_run(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(uri, folder, range(1, 4)) == []
    assert track(uri, folder, range(4, 6)) == []

    client, found = only_run(uri)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "tracked"
    assert found.data.params["grounding.temperature"] == "0.1"
    assert found.data.params["data.grounding.train.fingerprint"] == "abc"
    assert found.data.tags["version.torch"]
    assert found.data.tags["git.commit"]
    history = client.get_metric_history(found.info.run_id, "grounding/loss")
    assert [point.step for point in history] == [1, 2, 3, 4, 5]
    assert found.data.metrics["grounding/val/text_to_image/recall_at_10"] == 0.5
    files = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert files == {"config.yaml", "result.json", "model"}


def test_an_unreachable_server_gives_warnings(folder: Folder) -> None:
    warnings = track("http://127.0.0.1:9", folder, range(1, 4))
    assert len(warnings) == 2
    assert warnings[0].startswith("tracking failed, training continues: ")
    assert "could not be logged; the run itself is complete" in warnings[1]


def test_every_step_is_logged_exactly_once(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver was killed before it logged the steps of its last checkpoint, and the next repeated some of them."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    track(uri, folder, range(1, 4))
    kept = [StepDone("grounding", 0, step, 10, {"loss": 1.0 / step}, time=1e9 + step) for step in range(1, 7)]
    for number, done in ((1, 0), (2, 6)):
        attempt = Attempt(folder, attempts.claim(folder))
        start = Start(*attempt.token, (), "grounding", None, 0, done, done, began=1e9)
        if number == 2:
            start = replace(start, last_heartbeat=1e9 - 20, ended="killed", repeated_steps=1, repeated_seconds=2.5)
            kept = [StepDone("grounding", 0, 7, 10, {"loss": 1.0}, time=1e9 + 3.5)]
        attempt.write_begin({**asdict(start), "stages": ["grounding"]})
        history.write(folder, attempt.name(f"grounding-00000-00000{number}"), tuple(map(history.to_line, kept)))

    warnings: list[str] = []
    tracker = Tracker(settings(uri), folder, {}, warnings.append)
    for step in range(6, 9):
        tracker.observe(StepDone("grounding", 0, step, 10, {"loss": 1.0 / step}))
    tracker.close(None, "KILLED")

    client, found = only_run(uri)
    assert warnings == []
    assert found.info.status == "KILLED"
    points = client.get_metric_history(found.info.run_id, "grounding/loss")
    assert sorted(point.step for point in points) == list(range(1, 9))
    assert {point.step: point.timestamp for point in points}[5] == (10**9 + 5) * 1000
    recovery = {name.split("/")[1]: value for name, value in found.data.metrics.items() if name.startswith("recovery/")}
    assert recovery == {  # from the run's files: the tracker saw no such event
        "attempts": 2,
        "preemptions": 0,
        "repeated_steps": 1,
        "repeated_seconds": 2.5,
        "first_step_seconds": 3.5,
        "down_seconds": 23.5,
    }


def test_recovery_is_logged_once(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        tracker = Tracker(settings(uri), folder, {}, pytest.fail)
        tracker.observe(Attempted(2, "grounding", 6, "killed", 1, 2.5, 0))
        tracker.observe(Recovered(2, 3.5, 20.0))
        tracker.close(None, "KILLED")
    client, found = only_run(uri)
    for name in ("attempts", "first_step_seconds"):
        assert [point.step for point in client.get_metric_history(found.info.run_id, f"recovery/{name}")] == [2]


def test_a_damaged_history_does_not_keep_the_run_open(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (folder / "history").make().write_bytes("grounding-00001-000000-a0001.jsonl", b'{"event": "StepDo')
    warnings = track(uri, folder, range(1, 4))
    assert warnings == [f"a line of {folder}/history/grounding-00001-000000-a0001.jsonl is damaged and left out"]
    _, found = only_run(uri)
    assert found.info.status == "FINISHED"


def test_runs_created_at_once_become_one(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither process finds a run, so both create one: the later one is dropped for the older."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "_reopen", lambda *_: None)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(uri, folder, range(1, 4)) == []
    assert track(uri, folder, range(4, 6)) == []
    client, found = only_run(uri)
    assert [point.step for point in client.get_metric_history(found.info.run_id, "grounding/loss")] == [1, 2, 3, 4, 5]


def test_a_run_created_twice_becomes_one(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(uri, folder, range(1, 4)) == []
    client, first = only_run(uri)
    client.create_run(first.info.experiment_id, tags={tracking.RUN_TAG: str(folder)})
    assert track(uri, folder, range(4, 6)) == []
    client, found = only_run(uri)
    assert found.info.run_id == first.info.run_id
    assert [point.step for point in client.get_metric_history(found.info.run_id, "grounding/loss")] == [1, 2, 3, 4, 5]


def test_an_analysis_is_added_to_the_run(tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(uri, folder, range(1, 4)) == []
    found = {"analysis/axes/pc1/words/pearson/grounded": 0.9, "analysis/norms/f1/a@b, c/med": 0.5}
    files = {"report.html": b"<html>", "axes-measures.png": b"PNG"}
    for _ in range(2):
        assert tracking.log_analysis(settings(uri), folder, found, files, pytest.fail)

    client, run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["analysis/axes/pc1/words/pearson/grounded"] == 0.9
    assert run.data.metrics["analysis/norms/f1/a_at_b_ c/med"] == 0.5
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "analysis")}
    assert logged == {"analysis/report.html", "analysis/axes-measures.png"}


def test_an_analysis_without_a_run_gives_a_warning(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    warnings: list[str] = []
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert not tracking.log_analysis(settings(uri), folder, {}, {}, warnings.append)
    assert warnings == [
        "tracking failed, the analysis itself is complete: ValueError: no MLflow run of "
        f"{folder} at {uri}: train with tracking.enabled true"
    ]
