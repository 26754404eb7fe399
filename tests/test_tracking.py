"""Tracking: what MLflow holds after a run, and that a run outlives its tracking."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from groundray.config import Settings
from groundray.storage import Folder
from groundray.tracking import Tracker
from groundray.training.events import EpochDone, StepDone


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
    """Track some steps; the warnings."""
    warnings: list[str] = []
    tracker = Tracker(settings(uri), folder, {"grounding.train": "abc"}, warnings.append)
    for step in steps:
        tracker.observe(StepDone("grounding", 0, step, 10, {"loss": 1.0 / step}))
    tracker.observe(EpochDone("grounding", 0, 1, steps[-1], True, {"text_to_image/recall@10": 0.5}))
    tracker.close({"stages": {}})
    return warnings


def test_a_run_and_its_resume_are_one_mlflow_run(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert track(uri, folder, range(1, 4)) == []
    assert track(uri, folder, range(4, 6)) == []

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
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


def test_a_server_that_is_not_there_is_a_warning(folder: Folder) -> None:
    warnings = track("http://127.0.0.1:9", folder, range(1, 4))
    assert len(warnings) == 2
    assert warnings[0].startswith("tracking failed, training goes on: ")
    assert "could not be logged; the run itself is complete" in warnings[1]
