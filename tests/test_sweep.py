"""Sweeps from the command line, on the test session's cluster and on one of their own."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from conftest import SmallWorld
from mlflow.artifacts import download_artifacts
from servers import Server

from groundray import config
from groundray.runtime.train import launch
from groundray.storage.folder import Folder
from groundray.sweep import main, with_defaults
from groundray.tracking import mlflow_model
from groundray.training import attempts, history, preflight
from groundray.training.events import EpochDone
from groundray.training.layout import read_result

RECALL = "grounding/text_to_image/recall@10"
TEMPERATURES = "grounding.temperature=choice:0.05,0.1,1.0"


def words(
    world: SmallWorld, storage: Path, *more: str, stages: str = "grounding", space: str = TEMPERATURES
) -> list[str]:
    tracked = [
        "--tracking.enabled=true",
        f"--tracking.uri=sqlite:///{storage}/mlflow.db",
        "--tracking.experiment=sweeps",
    ]
    settings = world.settings(f"--run.storage={storage}", "--run.name=tau", *tracked, stages=stages)
    return ["--space", space, "--metric", RECALL, *settings, *more]


def test_command_line_settings_override_a_scripts_defaults() -> None:
    defaults = ["--visual.epochs=3", "--run.name=tau"]
    assert with_defaults([], defaults) == defaults
    for given in (["--visual.epochs", "2"], ["--visual.epochs=2"]):
        assert with_defaults(given, defaults) == ["--run.name=tau", *given]


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "uri")
def test_a_sweep_writes_a_table_a_plot_and_the_best_model(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--seeds=2", "--early-stopping=none", "--register=shown", "--language.epochs=1", "--grounding.epochs=1"]
    space = "grounding.temperature=choice:0.05,1.0"
    given = words(world, tmp_path, *more, stages="language,grounding", space=space)
    assert main(given) == 0
    output = capsys.readouterr()
    assert "2 trials at once" in output.out
    assert "language  trained once, for all trials" in output.out
    assert "models:/shown@best is version 1" in output.out

    trials = json.loads((tmp_path / "tau" / "trials.json").read_text())
    assert sorted((trial["values"]["grounding.temperature"], trial["seed"]) for trial in trials) == [
        (temperature, seed) for temperature in (0.05, 1.0) for seed in (0, 1)
    ]
    assert {trial["state"] for trial in trials} == {"finished"}
    assert (tmp_path / "tau" / "sweep.png").stat().st_size > 10_000
    assert (tmp_path / "tau" / "parallel.png").stat().st_size > 10_000
    assert (tmp_path / "tau" / "table.csv").read_text().count("\n") == 3

    client, number = tracking(tmp_path)
    (parent,) = client.search_runs([number], "tags.mlflow.runName = 'tau'")
    children = client.search_runs([number], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in children} == {"before", *(trial["name"] for trial in trials)}
    assert {child.info.status for child in children} == {"FINISHED"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {
        "sweep.png",
        "parallel.png",
        "table.csv",
    }
    swept = {child.info.run_name: child.data.params["grounding.temperature"] for child in children}
    assert all(swept[trial["name"]] == str(trial["values"]["grounding.temperature"]) for trial in trials)

    (line,) = (line for line in output.out.splitlines() if line.startswith("best"))
    winner = next(trial for trial in trials if trial["name"] == line.split()[1])
    assert winner["value"] == pytest.approx(float(line.split()[-1]), rel=1e-3)
    weights = "language/model.safetensors"
    trained = (tmp_path / "tau" / "trials" / winner["name"] / "model" / weights).read_bytes()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    downloaded = Path(download_artifacts("models:/shown@best", dst_path=str(tmp_path / "downloaded")))
    assert (downloaded / mlflow_model.STREAM / "model.safetensors").read_bytes() == trained

    # the command that it prints trains these weights again
    (line,) = (line for line in output.out.splitlines() if "python -m groundray.train" in line)
    _, _, module, flag, preset, *more = shlex.split(line)
    assert (module, flag, preset) == ("groundray.train", "--config", "demo")
    settings = config.load(preset, more)
    launch.fit(preflight.check(config.changed(settings, {"scaling.num_workers": 0})), lambda event: None)
    assert settings.run.name == "tau-best"
    assert (tmp_path / "tau-best" / "model" / weights).read_bytes() == trained

    # once more: nothing is trained again, nothing is logged or registered twice
    assert main(given) == 2
    assert "give --resume" in capsys.readouterr().err
    assert main([*given, "--resume", "--max-concurrent=1"]) == 2
    assert "trials at once: 'as many as fit' stored, 1 now" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    assert "models:/shown@best is version 1" in capsys.readouterr().out
    assert len(client.search_runs([number])) == 1 + len(children)


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("search", ["random", "tpe"])
def test_points_are_drawn_within_their_ranges(
    world: SmallWorld, tmp_path: Path, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    near = SmallWorld(*(Path(os.path.relpath(folder, tmp_path)) for folder in (world.source, world.shards)))
    more = ["--space=grounding.dropout=choice:0.0,0.1", f"--search={search}", "--num-samples=2", "--grounding.epochs=1"]
    space = "grounding.temperature=loguniform:0.05:0.5"
    assert main(words(near, Path(), *more, "--tracking.enabled=false", space=space)) == 0
    trials = json.loads((tmp_path / "tau" / "trials.json").read_text())
    drawn = [trial["values"]["grounding.temperature"] for trial in trials]
    assert len(set(drawn)) == 2
    assert all(0.05 <= temperature <= 0.5 for temperature in drawn)
    assert {trial["values"]["grounding.dropout"] for trial in trials} <= {0.0, 0.1}
    assert {trial["state"] for trial in trials} == {"finished"}


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "uri")
def test_several_metrics_give_a_front_and_the_best_trial_by_each(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a stage whose settings no trial changes, and one of the stage after it; Optuna minimizes and maximizes."""
    monkeypatch.chdir(tmp_path)
    more = ["--search=tpe", "--num-samples=3", "--metric=language/loss", "--language.epochs=1", "--grounding.epochs=1"]
    space = "language.mask_fraction=uniform:0.05:0.9"
    assert main(words(world, tmp_path, *more, stages="language,grounding", space=space)) == 0
    output = capsys.readouterr().out
    folder = tmp_path / "tau"
    trials = json.loads((folder / "trials.json").read_text())
    assert {trial["state"] for trial in trials} == {"finished"}
    for trial in trials:
        result = read_result(Folder.at(folder / "trials" / trial["name"]))
        assert result is not None
        measured = {f"{stage}/{name}": x for stage, scores in result["stages"].items() for name, x in scores.items()}
        assert trial["scores"] == {name: measured[name] for name in (RECALL, "language/loss")}
        assert trial["value"] == trial["scores"][RECALL]
    best = [line.split()[1] for line in output.splitlines() if line.startswith("best")]
    highest = max(trials, key=lambda trial: trial["scores"][RECALL])["scores"][RECALL]
    lowest = min(trials, key=lambda trial: trial["scores"]["language/loss"])["name"]
    assert next(trial for trial in trials if trial["name"] == best[0])["scores"][RECALL] == highest
    assert best[1:] == [lowest]
    head, *rows = (folder / "table.csv").read_text().splitlines()
    assert head == f"language.mask_fraction,{RECALL},language/loss,front,epochs,state,minutes"
    assert [row.split(",")[3] for row in rows] == sorted((row.split(",")[3] for row in rows), reverse=True)
    client, number = tracking(tmp_path)
    (parent,) = client.search_runs([number], "tags.mlflow.runName = 'tau'")
    pictures = {"sweep.png", "parallel.png", "front.png"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= pictures
    assert set(parent.data.metrics) == {"grounding/text_to_image/recall_at_10", "language/loss"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--order=max"], "--order max: expected one --metric, got 2: give each its own, such as --metric grounding/"),
        (["--register"], "--register: expected one --metric, got 2: no one model is the best of several metrics"),
        (["--early-stopping=asha"], "--early-stopping asha: expected one --metric, got 2 (grounding/text_to_image/"),
        ([f"--metric={RECALL}"], f"--metric {RECALL}: expected each metric once"),
        (["--metric=relational/loss"], "expected a metric of a stage that is trained (grounding), got one of"),
        (["--metric=grounding/recall@10:up"], "expected min or max after the colon, got 'up'"),
    ],
)
def test_several_metrics_are_refused_where_one_is_needed(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(world, tmp_path, "--metric=grounding/loss", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "tau").exists()


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "uri")
def test_a_trial_that_patience_ends_is_finished_and_has_its_best_value(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this learning rate, recall stays where chance has it: no validation is better than the first ones."""
    monkeypatch.chdir(tmp_path)
    early = ["--grounding.epochs=4", "--grounding.validate_every_steps=4", "--grounding.patience=2"]
    chosen = ["--grounding.best=text_to_image/recall@10:max", "--grounding.optimizer.lr=0.003"]
    assert main(words(world, tmp_path, *early, *chosen, space="grounding.temperature=choice:0.05,0.1")) == 0
    trials = json.loads((tmp_path / "tau" / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["finished"] * 2

    client, number = tracking(tmp_path)
    for trial in trials:
        folder = Folder.at(tmp_path / "tau" / "trials" / trial["name"])
        result = read_result(folder)
        assert result is not None
        choice = result["best"]["grounding"]
        assert choice["last_step"] < 4 * 9  # steps of an epoch
        validations = [event for event, _ in history.read(folder) if isinstance(event, EpochDone)]
        recalls = {event.step: event.metrics["text_to_image/recall@10"] for event in validations}
        assert trial["value"] == recalls[choice["step"]] == max(recalls.values())
        assert trial["epochs"] == validations[-1].epoch + 1

        (run,) = client.search_runs([number], f"tags.mlflow.runName = '{trial['name']}'")
        assert run.info.status == "FINISHED"
        assert run.data.tags["grounding.best"] == (
            f"epoch {choice['epoch']}, step {choice['step']} of {choice['last_step']}, by text_to_image/recall@10:max; "
            "stopped early: no better text_to_image/recall@10 for 2 validations"
        )
        logged = client.get_metric_history(run.info.run_id, "grounding/val/text_to_image/recall_at_10")
        assert {point.step: point.value for point in logged} == recalls
        assert 4 in recalls


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_writes_to_an_object_store(
    world: SmallWorld, s3: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.use(monkeypatch)
    storage = s3.folder()
    settings = world.settings(
        *("--run.name=tau", "--grounding.epochs=1", "--grounding.trains.trunk=false", f"--run.storage={storage}"),
        url=world.copied_to(s3.folder()),
    )
    given = ["--space=grounding.temperature=choice:0.05,0.1", f"--metric={RECALL}", "--early-stopping=none", *settings]
    assert main(given) == 0
    folder = Folder.at(storage) / "tau"
    assert {"sweep.png", "parallel.png", "sweep.json", "table.csv", "trials.json", "trials", "tune"} == set(
        folder.names()
    )
    trials = [folder / "trials" / trial["name"] for trial in folder.read_json("trials.json")]
    assert len(trials) == 2
    assert main([*given, "--resume"]) == 2
    assert "give --trust-storage" in capsys.readouterr().err
    assert main([*given, "--resume", "--trust-storage"]) == 0
    assert "best    trial-0000" in capsys.readouterr().out
    for trial in trials:
        assert trial.exists("model/language/model.safetensors")
        assert len(attempts.begun(trial)) == 1  # nothing was trained again


def tracking(storage: Path) -> tuple[mlflow.MlflowClient, str]:
    """Return MLflow's client and the id of the sweeps' experiment."""
    client = mlflow.MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("sweeps")
    assert experiment is not None
    return client, experiment.experiment_id


def apart(
    world: SmallWorld, storage: Path, *more: str, stages: str = "grounding", space: str = TEMPERATURES
) -> subprocess.Popen[str]:
    """Start a sweep in a separate process, with a separate cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", "groundray.sweep", *words(world, storage, *more, stages=stages, space=space)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=storage,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )


@pytest.mark.ray
@pytest.mark.slow
def test_an_early_stopped_trial_frees_its_workers(world: SmallWorld, tmp_path: Path) -> None:
    """The cluster has room for one such trial: the next starts only when the workers of a stopped one are gone."""
    more = [
        "--scaling.num_workers=2",
        "--scaling.cpus_per_worker=0.5",
        "--grounding.epochs=4",
        "--metric=grounding/loss",
    ]
    with apart(world, tmp_path, *more, space="grounding.optimizer.lr=choice:1e-3,1e-9,1e-10") as sweep:
        output = sweep.communicate(timeout=280)[0]
    assert sweep.returncode == 0, output
    trials = json.loads((tmp_path / "tau" / "trials.json").read_text())
    ended = {trial["values"]["grounding.optimizer.lr"]: trial["state"] for trial in trials}
    assert ended == {1e-3: "finished", 1e-9: "stopped early", 1e-10: "stopped early"}, output


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_sweep_resumes(world: SmallWorld, tmp_path: Path) -> None:
    """Interrupt the shared run that trials start from, then a trial."""
    more = ["--early-stopping=none", "--max-concurrent=1", "--language.epochs=40", "--resume"]
    for at, number in (("language  epoch 1/40  validation", signal.SIGINT), ("trial-00001  epoch 1", signal.SIGTERM)):
        with apart(world, tmp_path, *more, stages="language,grounding") as sweep:
            output = ""
            for line in sweep.stdout or ():
                output += line
                if at in line:
                    sweep.send_signal(number)
        assert sweep.returncode == 128 + number, output
        assert "rerun the same command with --resume to resume" in output
    folder = tmp_path / "tau" / "trials" / "trial-00000"
    first = {path.name: path.stat().st_mtime for path in folder.iterdir()}

    with apart(world, tmp_path, *more, stages="language,grounding") as sweep:
        output = sweep.communicate(timeout=200)[0]
    assert sweep.returncode == 0, output
    assert {path.name: path.stat().st_mtime for path in folder.iterdir()} == first
    trials = json.loads((tmp_path / "tau" / "trials.json").read_text())
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    for trial in trials:
        events = [event for event, _ in history.read(Folder.at(folder.parent / trial["name"]), print)]
        assert len(events) == len(set(map(str, events)))
    client, number = tracking(tmp_path)
    assert len(client.search_runs([number])) == 1 + 1 + 3  # the sweep, what trials start from, the trials


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-concurrent=9"], "--max-concurrent: expected at most 2, got 9: a trial takes 1 CPUs and 0 GPUs"),
        (["--scaling.cpus_per_worker=5"], "a trial takes 5 CPUs and 0 GPUs, the cluster has 2 and 0: use fewer"),
        (["--scaling.use_gpu=true"], "a trial takes 1 CPUs and 1 GPUs, the cluster has 2 and 0"),
        (["--num-samples=0"], "--num-samples: expected at least 1, got 0"),
        (["--register", "--tracking.enabled=false"], "--register: expected tracking.enabled true"),
        (["--metric=grounding/nothing"], "stage grounding reports loss"),
        (["--space=grounding.dropout=uniform:1:0"], "expected LOW below HIGH"),
    ],
)
def test_an_impossible_sweep_fails_before_it_starts(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(world, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "tau").exists()


def test_an_impossible_sweep_fails_before_the_embedded_world_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space = "--space=grounding.temperature=uniform:0.1:1"
    for more, message in (
        ([space, "--search=grid", "--metric=grounding/loss"], "--search grid: expected choice"),
        ([space, "--metric=groundin/loss"], "groundin"),
    ):
        assert main(more) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_an_unreachable_cluster_is_named(world: SmallWorld, tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9", "RAY_gcs_rpc_server_reconnect_timeout_s": "1"}
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "groundray.sweep", *words(world, tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert ran.returncode == 2, ran.stderr
    assert "127.0.0.1:9" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert time.monotonic() - began < 60
    assert not (tmp_path / "tau").exists()
