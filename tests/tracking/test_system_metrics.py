"""System metrics of a run: logged while it runs, to its own server, and stopped at its end."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.tracking.mlflow_log import MlflowLog
from groundray.tracking.tracker import Tracker
from groundray.training import identity
from groundray.training.events import StepDone


@pytest.fixture(scope="module")
def uri(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('tracked'))}"


def settings(uri: str, system_metrics: bool = True, experiment: str = "tests") -> Settings:
    return Settings(
        run={"name": "tracked"},
        stages=("grounding",),
        grounding={"train": "t", "val": "v", "batch_size": 4},
        tracking={"uri": uri, "experiment": experiment, "system_metrics": system_metrics},
    )  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def monitors() -> list[threading.Thread]:
    """Return the threads of MLflow's monitors."""
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


@pytest.mark.thorough
def test_system_metrics_are_logged_until_the_end_and_go_on_when_the_run_resumes(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # is not asked
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("tests", tmp_path.as_uri())
    folder = Folder.at(tmp_path / "run").make()
    run = identity.claim(folder, settings(uri), {})
    name, counts = "system/cpu_utilization_percentage", [0]
    for ended, expected in (("KILLED", "KILLED"), ("FAILED", "FAILED")):
        tracker = Tracker(settings(uri), folder, run, pytest.fail)
        tracker.observe(StepDone("grounding", 0, 1, 10, {"loss": 1.0}))

        def points() -> list[int]:
            runs = client.search_runs([experiment])
            return [point.step for each in runs for point in client.get_metric_history(each.info.run_id, name)]

        wait_for(lambda: len(points()) > counts[-1] + 1)
        tracker.close(None, ended)  # type: ignore[arg-type]
        assert monitors() == []
        (found,) = client.search_runs([experiment])
        assert found.info.status == expected
        steps = points()
        assert sorted(steps) == list(range(len(steps)))
        counts.append(len(steps))
    assert {key.split("/")[0] for key in found.data.metrics} == {"grounding", "system"}
    assert {"system/system_memory_usage_megabytes", "system/network_receive_megabytes"} <= found.data.metrics.keys()
    assert "system_metrics" not in capsys.readouterr().err


def test_a_server_that_goes_away_ends_the_monitor_and_nothing_else(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracked, folder = settings(uri, experiment="away"), Folder.at(tmp_path / "run").make()
    mlflow.MlflowClient(uri).create_experiment("away", tmp_path.as_uri())
    log = MlflowLog.open(tracked, folder, identity.claim(folder, tracked, {}), None)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_run", lambda *_: 1 / 0)
        wait_for(lambda: not monitors())
    log.end(None, "KILLED", folder)


def test_without_the_setting_there_are_no_system_metrics(uri: str, tmp_path: Path) -> None:
    mlflow.MlflowClient(uri).create_experiment("without", tmp_path.as_uri())
    without, folder = settings(uri, False, "without"), Folder.at(tmp_path / "run").make()
    log = MlflowLog.open(without, folder, identity.claim(folder, without, {}), None)
    assert monitors() == []
    log.end(None, "KILLED", folder)
    assert settings(uri).identity() == without.identity()
