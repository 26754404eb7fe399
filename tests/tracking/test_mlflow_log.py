"""Tracking: what MLflow contains after a run, and that failures of tracking do not end a run."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import pytest
from conftest import SmallWorld
from mlflow.entities import Run

from groundray import config, sweep, train
from groundray.config import Settings, Tracking
from groundray.runtime.train import launch
from groundray.storage.folder import Folder
from groundray.tracking import mlflow_log, store
from groundray.tracking.analysis_log import log_analysis
from groundray.tracking.inquiry import Inquiry
from groundray.tracking.mlflow_log import MlflowLog
from groundray.tracking.protocol import Status
from groundray.tracking.sweep_log import SweepLog
from groundray.tracking.tracker import Tracker
from groundray.training import attempts, history, identity
from groundray.training.attempts import Attempt
from groundray.training.events import Attempted, EpochDone, Recovered, StepDone
from groundray.training.identity import Identity
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
    return Folder.at(tmp_path / "runs" / "tracked").make()


def claimed(uri: str, folder: Folder) -> Identity:
    """Return the identity of the run in a folder, minted at the first call."""
    return identity.claim(folder, settings(uri), {"grounding.train": "abc"})


def track(uri: str, folder: Folder, steps: range) -> list[str]:
    """Track some steps and return the warnings."""
    warnings: list[str] = []
    tracker = Tracker(settings(uri), folder, claimed(uri, folder), warnings.append)
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
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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
    assert files == {"config.yaml", "result.json"}


def test_an_unreachable_server_gives_warnings(folder: Folder) -> None:
    warnings = track("http://127.0.0.1:9", folder, range(1, 4))
    assert len(warnings) == 2
    assert warnings[0].startswith("tracking failed, training continues: ")
    assert "could not be logged; the run itself is complete" in warnings[1]


def test_what_mlflow_refuses_spoils_nothing_else(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes neither inputs nor models, and a library raises SystemExit."""

    def refused(*_: object, **__: object) -> None:
        raise SystemExit("not here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow_log, "log_data_sets", lambda *_: 1 / 0)
    monkeypatch.setattr(mlflow_log, "attach_model", refused)
    warnings = track(uri, folder, range(1, 4))
    client, found = only_run(uri)
    assert [point.step for point in client.get_metric_history(found.info.run_id, "grounding/loss")] == [1, 2, 3]
    assert found.info.status == "FINISHED"
    inputs, model, lost = warnings
    assert "ZeroDivisionError" in inputs
    assert "SystemExit: not here" in model
    assert "could not be logged" in lost


def test_every_step_is_logged_exactly_once(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver was killed before it logged the steps of its last checkpoint, and the next repeated some of them."""
    monkeypatch.chdir(tmp_path)
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
    tracker = Tracker(settings(uri), folder, claimed(uri, folder), warnings.append)
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


@pytest.mark.parametrize("answers", [False, True], ids=["down", "interrupted"])
def test_validations_within_an_epoch_are_caught_up(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """The server was down, or a call was interrupted between steps and their validation, whose file tells its steps."""
    monkeypatch.chdir(tmp_path)
    server = {"uri": uri if answers else "http://127.0.0.1:9"}
    monkeypatch.setattr(store, "uri_of", lambda _: server["uri"])
    often = settings(uri).model_copy(deep=True)
    often = config.changed(often, {"grounding.validate_every_steps": 2, "grounding.epochs": 2})
    run = identity.claim(folder, often, {"grounding.train": "abc"})

    def step(number: int) -> StepDone:
        return StepDone("grounding", (number - 1) // 5, number, 10, {"loss": 1.0 / number}, time=1e9 + number)

    def validation(number: int) -> EpochDone:
        ends = number % 5 == 0
        return EpochDone("grounding", (number - 1) // 5, 2, number, ends, {"loss": float(number)}, time=1e9 + number)

    attempt = Attempt(folder, attempts.claim(folder))
    attempt.write_begin({**asdict(Start(*attempt.token, (), "grounding", None, 0, 0, 0, 1e9)), "stages": ["grounding"]})
    files = {
        "grounding-00000-000003": [step(1), step(2), validation(2), step(3)],
        "grounding-00001-000000": [step(4), validation(4), step(5), validation(5)],
        "grounding-00001-000003": [step(6), step(7), validation(7), step(8)],
        "grounding-00002-000000": [step(9), validation(9), step(10), validation(10)],
    }
    for name, events in files.items():
        history.write(folder, attempt.name(name), tuple(map(history.to_line, events)))

    first: list[str] = []
    if answers:  # all but the validations of the steps 4 and 7 got there
        log = MlflowLog.open(often, folder, run, None)
        log.metrics(one for events in files.values() for one in events if one not in (validation(4), validation(7)))
        log.release()
    else:
        Tracker(often, folder, run, first.append).close(None, "KILLED")
        assert any("could not be logged" in warning for warning in first)
    server["uri"] = uri
    later: list[str] = []
    for _ in range(2):  # the second time, nothing is missing
        tracker = Tracker(often, folder, run, later.append)
        tracker.observe(step(10))
        tracker.close({"stages": {}, "best": {"grounding": CHOICE}})
    assert later == []

    client, found = only_run(uri)
    points = client.get_metric_history(found.info.run_id, "grounding/val/loss")
    assert sorted((point.step, point.value) for point in points) == [(n, float(n)) for n in (2, 4, 5, 7, 9, 10)]
    assert {point.timestamp for point in points} == {(10**9 + n) * 1000 for n in (2, 4, 5, 7, 9, 10)}
    steps = client.get_metric_history(found.info.run_id, "grounding/loss")
    assert sorted(point.step for point in steps) == list(range(1, 11))
    assert found.data.tags["grounding.best"] == "epoch 1, step 4 of 10, by loss:min; all 2 epochs done"


CHOICE = {"by": "loss:min", "epoch": 1, "step": 4, "last_step": 10, "ended": "all 2 epochs done"}


def test_recovery_is_logged_once(uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        tracker = Tracker(settings(uri), folder, claimed(uri, folder), pytest.fail)
        tracker.observe(Attempted(2, "grounding", 6, "killed", 1, 2.5, 0))
        tracker.observe(Recovered(2, 3.5, 20.0))
        tracker.close(None, "KILLED")
    client, found = only_run(uri)
    for name in ("attempts", "first_step_seconds"):
        assert [point.step for point in client.get_metric_history(found.info.run_id, f"recovery/{name}")] == [2]


def test_a_damaged_history_does_not_keep_the_run_open(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "history").make().write_bytes("grounding-00001-000000-a0001.jsonl", b'{"event": "StepDo')
    warnings = track(uri, folder, range(1, 4))
    assert warnings == [
        f"{folder}/history/grounding-00001-000000-a0001.jsonl is damaged: 1 of its 1 lines are left out"
    ]
    _, found = only_run(uri)
    assert found.info.status == "FINISHED"


def test_a_run_created_twice_becomes_one(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a stopped trial and the sweep that closes its run: the later one, without metrics, is dropped."""
    monkeypatch.chdir(tmp_path)
    assert track(uri, folder, range(1, 4)) == []
    client, first = only_run(uri)
    client.create_run(first.info.experiment_id, tags={store.ID_TAG: claimed(uri, folder).id})
    assert track(uri, folder, range(4, 6)) == []
    client, found = only_run(uri)
    assert found.info.run_id == first.info.run_id
    assert [point.step for point in client.get_metric_history(found.info.run_id, "grounding/loss")] == [1, 2, 3, 4, 5]


def runs(uri: str) -> list[Run]:
    """Return the runs of the tests' experiment, oldest first."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.info.start_time)


def test_a_deleted_and_restarted_run_is_another_mlflow_run(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert track(uri, folder, range(1, 6)) == []
    folder.delete(".")
    folder.make()
    assert track(uri, folder, range(1, 3)) == []
    first, second = runs(uri)
    client = mlflow.MlflowClient(uri)
    assert [len(client.get_metric_history(run.info.run_id, "grounding/loss")) for run in (first, second)] == [5, 2]
    assert first.info.status == second.info.status == "FINISHED"


def test_equal_paths_on_two_machines_are_two_mlflow_runs(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They report to one server, at the same time."""
    monkeypatch.chdir(tmp_path)
    machines = [Identity(identity.mint(), settings(uri), {}, str(folder)) for _ in range(2)]
    trackers = [Tracker(settings(uri), folder, each, pytest.fail) for each in machines]
    for number, tracker in enumerate(trackers, start=1):
        for step in range(1, 1 + number):
            tracker.observe(StepDone("grounding", 0, step, 10, {"loss": float(number)}))
    for tracker in trackers:
        tracker.close(None)
    client = mlflow.MlflowClient(uri)
    logged = [[p.value for p in client.get_metric_history(run.info.run_id, "grounding/loss")] for run in runs(uri)]
    assert sorted(logged) == [[1.0], [2.0, 2.0]]


def test_a_run_of_an_earlier_version_keeps_its_mlflow_run(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no id; its MLflow run has the path as a tag. One of other settings at the same path is not taken."""
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient(uri)
    number = client.create_experiment("tests")
    tags = {"groundray.run": str(folder), "mlflow.source.name": "groundray.train"}
    others = client.create_run(number, tags=tags).info.run_id
    client.log_param(others, "grounding.temperature", "0.5")
    own = client.create_run(number, tags=tags).info.run_id
    client.log_param(own, "grounding.temperature", "0.1")
    folder.write_bytes("config.yaml", settings(uri).to_yaml().encode())
    for _ in range(2):
        assert track(uri, folder, range(1, 4)) == []
    assert {run.info.run_id for run in runs(uri)} == {others, own}
    assert client.get_run(own).data.tags[store.ID_TAG] == claimed(uri, folder).id
    assert [point.step for point in client.get_metric_history(own, "grounding/loss")] == [1, 2, 3]
    assert client.get_metric_history(others, "grounding/loss") == []


NAMES = ["o'brien", 'say "x"', "a`b", "50%_done", "back\\slash", "' OR 1=1 --", "ü 北 😀", "a;b", "'\"`"]


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_quotes_in_a_path_or_an_experiment_are_tracked(
    uri: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder.at(tmp_path / name).make()
    named = settings(uri).model_copy(update={"tracking": Tracking(uri=uri, experiment=name)})
    for steps in (range(1, 3), range(3, 5)):
        tracker = Tracker(named, folder, claimed(uri, folder), pytest.fail)
        for step in steps:
            tracker.observe(StepDone("grounding", 0, step, 10, {"loss": 1.0}))
        tracker.close(None)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert [point.step for point in client.get_metric_history(found.info.run_id, "grounding/loss")] == [1, 2, 3, 4]
    assert found.data.tags["groundray.run"] == str(folder)


def test_a_deleted_experiment_is_named_with_its_repair(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert Inquiry(settings(uri)).problem() is None
    assert not (tmp_path / "mlflow.db").exists()  # asking creates nothing
    assert track(uri, folder, range(1, 4)) == []
    assert Inquiry(settings(uri)).problem() is None

    client, found = only_run(uri)
    client.delete_run(found.info.run_id)
    problem = Inquiry(settings(uri)).problem()
    assert f"MLFLOW_TRACKING_URI={uri} mlflow runs restore --run-id {found.info.run_id}" in str(problem)
    warning, _ = track(uri, folder, range(4, 6))
    assert warning == f"tracking failed, training continues: MLflow: {problem}"
    client.restore_run(found.info.run_id)

    client.delete_experiment(found.info.experiment_id)
    problem = Inquiry(settings(uri)).problem()
    assert f"mlflow experiments restore -x {found.info.experiment_id}" in str(problem)
    assert "--tracking.experiment ANOTHER" in str(problem)
    assert track(uri, folder, range(4, 6))[0] == f"tracking failed, training continues: MLflow: {problem}"
    client.restore_experiment(found.info.experiment_id)
    assert track(uri, folder, range(4, 6)) == []
    client, found = only_run(uri)
    assert [point.step for point in client.get_metric_history(found.info.run_id, "grounding/loss")] == [1, 2, 3, 4, 5]


def test_a_deleted_experiment_ends_a_start_and_is_in_a_dry_run(
    uri: str, world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "fit", lambda *_, **__: pytest.fail("it trains"))
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("tests"))
    tracked = ["--tracking.enabled=true", f"--tracking.uri={uri}", "--tracking.experiment=tests"]
    words = world.settings(*tracked, f"--run.storage={tmp_path}/runs", "--scaling.num_workers=0")
    repair = f"`MLFLOW_TRACKING_URI={uri} mlflow experiments restore -x 1`"
    assert train.main([*words, "--dry-run"]) == 2
    assert repair in capsys.readouterr().out
    assert train.main(words) == 2
    assert repair in capsys.readouterr().err
    swept = ["--space=grounding.temperature=choice:0.05,0.1", "--metric=grounding/loss"]
    assert sweep.main([*swept, *words]) == 2
    assert repair in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert train.main([*words, "--dry-run", "--tracking.experiment=other"]) == 0


def test_an_unreachable_server_is_no_problem_before_a_run() -> None:
    assert Inquiry(settings("http://127.0.0.1:9")).problem() is None


def test_runs_of_a_sweep_are_logged_when_the_server_comes_late(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is down when the sweep starts and while its trials train, and answers at the sweep's end."""
    monkeypatch.chdir(tmp_path)
    down = "http://127.0.0.1:9"
    folder = Folder.at(tmp_path / "sweep").make()
    swept = Identity(identity.mint(), settings(uri), {}, str(folder))
    warnings: list[str] = []
    server = {"uri": down}
    monkeypatch.setattr(store, "uri_of", lambda _: server["uri"])
    log = SweepLog(settings(uri), folder, swept, {"space": "x"}, warnings.append)
    assert len(warnings) == 1
    for name, steps in (("trials/trial-0", 3), ("trials/trial-1", 2)):
        trial = (folder / name).make()
        tracker = Tracker(settings(uri), trial, claimed(uri, trial), lambda _: None, swept.id)
        attempt = Attempt(trial, attempts.claim(trial))
        start = Start(*attempt.token, (), "grounding", None, 0, 0, 0, began=1e9)
        attempt.write_begin({**asdict(start), "stages": ["grounding"]})
        done = [StepDone("grounding", 0, step, 10, {"loss": 1.0}) for step in range(1, steps + 1)]
        history.write(trial, attempt.name("grounding-00000-000001"), tuple(map(history.to_line, done)))
        tracker.close(None)
        trial.write_json("result.json", {"stages": {}})
    folder.write_bytes("table.csv", b"x")
    ended: dict[str, Status] = {"trials/trial-0": "FINISHED", "trials/trial-1": "KILLED", "before": "FINISHED"}

    log.close({"loss": 1.0}, ["table.csv"], ended, finished=True)
    assert "rerun the same command with --resume" in warnings[-1]
    server["uri"] = uri
    for _ in range(2):  # the second time, nothing is missing
        log.close({"loss": 1.0}, ["table.csv"], ended, finished=True)
        assert len(warnings) == 2
        client = mlflow.MlflowClient(uri)
        parents = [run for run in runs(uri) if "mlflow.parentRunId" not in run.data.tags]
        assert [run.data.params["space"] for run in parents] == ["x"]
        children = [run for run in runs(uri) if "mlflow.parentRunId" in run.data.tags]
        by_status = {run.info.status: run for run in children}
        assert len(children) == len(by_status) == 2
        for status, steps in (("FINISHED", 3), ("KILLED", 2)):
            child = by_status[status]
            assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
            assert child.data.params["grounding.temperature"] == "0.1"
            assert len(client.get_metric_history(child.info.run_id, "grounding/loss")) == steps


def test_a_damaged_run_of_a_sweep_spoils_only_itself(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Folder.at(tmp_path / "sweep").make()
    warnings: list[str] = []
    swept = Identity(identity.mint(), settings(uri), {}, str(folder))
    log = SweepLog(settings(uri), folder, swept, {}, warnings.append)
    for name in ("damaged", "whole"):
        claimed(uri, (folder / name).make())
    (folder / "damaged").write_bytes("run.json", b"{}")
    log.close({}, [], {"damaged": "KILLED", "whole": "KILLED"}, finished=True)
    assert len(warnings) == 1
    assert f"{folder}/damaged/run.json" in warnings[0]
    assert sorted(run.info.status for run in runs(uri)) == ["FINISHED", "KILLED"]


def test_an_analysis_is_added_to_the_run(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert track(uri, folder, range(1, 4)) == []
    found = {"analysis/axes/pc1/words/pearson/grounded": 0.9, "analysis/norms/f1/a@b, c/med": 0.5}
    files = {"report.html": b"<html>", "axes-measures.png": b"PNG", "tables/axes.csv": b"a,b", "tables/axes.tex": b"%"}
    for _ in range(2):
        assert log_analysis(settings(uri), folder, found, files, pytest.fail)

    client, run = only_run(uri)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["analysis/axes/pc1/words/pearson/grounded"] == 0.9
    assert run.data.metrics["analysis/norms/f1/a_at_b_ c/med"] == 0.5
    logged = {file.path for file in client.list_artifacts(run.info.run_id, "analysis")}
    logged |= {file.path for file in client.list_artifacts(run.info.run_id, "analysis/tables")}
    assert logged == {"analysis/tables", *(f"analysis/{name}" for name in files)}


def test_an_analysis_without_a_run_gives_a_warning(
    uri: str, tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    warnings: list[str] = []
    assert not log_analysis(settings(uri), folder, {}, {}, warnings.append)
    assert warnings == [
        "tracking failed, the analysis itself is complete: ValueError: no MLflow run of "
        f"{folder} at {uri}: train with tracking.enabled true and mlflow in tracking.to"
    ]


def test_the_default_store_is_in_the_working_folder_whatever_its_name(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "50%41 b?c#d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert not store.store_exists(store.server_uri())
    shutil.copy(empty_store, folder)
    assert store.store_exists(store.server_uri())
    store.client_at(store.server_uri()).create_experiment("here", "artifacts")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert ("here",) in database.execute("select name from experiments").fetchall()


def test_a_store_that_is_no_file_of_sqlite_is_asked_unless_its_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs"
    uris = (str(folder), folder.as_uri(), f"file:{folder}", "my runs")
    assert not any(store.store_exists(uri) for uri in uris)
    folder.mkdir()
    assert all(store.store_exists(uri) for uri in (*uris, "http://127.0.0.1:9", "databricks", "databricks://me"))
