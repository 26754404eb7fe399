"""`python -m groundray.train` and `python -m groundray.analyse`, as a person runs them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import servers
import torch
import yaml
from conftest import STAGES, SmallWorld
from pyarrow.parquet import read_table

from groundray import analyse, config, train
from groundray.data import feature_stream
from groundray.runtime.data.feature_tasks import make_features
from groundray.runtime.train import launch, ray_worker
from groundray.storage.folder import Folder
from groundray.training import attempts, history, preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.checkpointer import Checkpointer
from groundray.training.events import EpochDone, Event, FeaturesDone, StepDone
from groundray.training.trunk_features import with_features
from groundray.training.worker import InProcess


def losses(events: list[Event]) -> list[float]:
    return [event.metrics["loss"] for event in events if isinstance(event, StepDone)]


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_ray_workers_train_what_this_process_trains(world: SmallWorld, tmp_path: Path) -> None:
    each = [f"--{stage}.{value}" for stage in STAGES.split(",") for value in ("epochs=1", "precision=float64")]
    words = world.settings("--data.window=24", f"--run.storage={tmp_path}", *each, stages=STAGES)
    alone: list[Event] = []
    launch.fit(
        preflight.check(config.load("demo", [*words, "--run.name=alone", "--scaling.num_workers=0"])), alone.append
    )
    together: list[Event] = []
    result = launch.fit(preflight.check(config.load("demo", [*words, "--run.name=together"])), together.append)

    assert losses(together) == pytest.approx(losses(alone), rel=1e-8)
    assert len(losses(together)) == 7 + 4 * 9
    (ours, theirs) = ([e.metrics for e in events if isinstance(e, EpochDone)] for events in (together, alone))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert result == Folder.at(tmp_path / "together").read_sealed("result.json")
    assert (
        analyse.main(
            ["retrieval", "--checkpoint", f"{tmp_path}/together/model", "--data", f"{world.shards}/captions/val"]
        )
        == 0
    )


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_pool_makes_the_features_of_a_frozen_trunk(world: SmallWorld, tmp_path: Path) -> None:
    frozen = [f"--{stage}.trains.trunk=false" for stage in ("grounding", "relational")]
    words = world.settings(f"--run.storage={tmp_path}/pool", *frozen, stages="grounding,relational")
    events: list[Event] = []
    make_features(preflight.check(config.load("demo", words)), events.append)
    done = [f"{stage}.{part}" for stage in ("grounding", "relational") for part in ("train", "val")]
    assert [event.what for event in events if isinstance(event, FeaturesDone)] == done
    make_features(preflight.check(config.load("demo", words)), events.append)
    assert len(events) == 2 * len(done)  # they are there

    settings = config.load("demo", [*words, f"--run.storage={tmp_path}/process"])
    trunk = progression.initial_model(settings)[0].visual.trunk
    for stage in preflight.check(settings).stages:
        with_features(stage, settings, trunk, InProcess(events.append))
    pool, process = (
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name / ".features").rglob("*.parquet"))
        for name in ("pool", "process")
    )
    assert pool == process
    for path in pool:
        ours, theirs = (read_table(tmp_path / name / path)["image"].to_pylist() for name in ("pool", "process"))
        maps = (np.frombuffer(b"".join(rows), np.uint16) for rows in (ours, theirs))
        one, other = (torch.from_numpy(bits.copy()).view(torch.bfloat16).float() for bits in maps)
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)  # on another number of threads


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow  # minutes: two makings of features and three groups of workers start
@pytest.mark.timeout(900)  # on a busy machine
def test_local_features_give_the_losses_of_those_in_a_store_although_a_worker_is_killed(
    world: SmallWorld, tmp_path: Path, s3: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of each worker read the local ones; those in a store come through Ray Data."""
    s3.use(monkeypatch)
    train_worker, killed = launch._train_worker, tmp_path / "killed"

    def watched(config: dict[str, Any]) -> None:  # in the worker's process
        import ray.train

        name, rank = config["settings"]["run"]["name"], ray.train.get_context().get_world_rank()
        step_done = Checkpointer.step_done

        def recorded(way: str, stream: Callable[..., Any]) -> Callable[..., Any]:
            def streamed(*arguments: Any) -> Any:
                (tmp_path / f"{name}-rank{rank}.{way}").touch()
                return stream(*arguments)

            return streamed

        def killing(checkpointer: Checkpointer, *arguments: Any) -> None:
            # the checkpoint after step 13 waits for that of the epoch, after step 9
            if name == "local" and rank == 1 and checkpointer.state.done == 13 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            step_done(checkpointer, *arguments)

        feature_stream.stream = recorded("threads", feature_stream.stream)
        ray_worker.stream = recorded("ray", ray_worker.stream)
        Checkpointer.step_done = killing  # type: ignore[method-assign]
        train_worker(config)

    monkeypatch.setattr(launch, "_train_worker", watched)
    words = world.settings(
        *("--grounding.trains.trunk=false", "--grounding.dropout=0.3", "--data.window=24"),
        *("--checkpoints.every_steps=4", f"--run.storage={tmp_path}"),
    )

    def trained(*more: str) -> tuple[list[tuple[int, float]], list[dict[str, Any]]]:
        run = preflight.check(config.load("demo", [*words, *more]))
        launch.fit(run, lambda _: None)
        steps = (event for event, _ in history.read(run.folder) if isinstance(event, StepDone))
        begun = attempts.begun(run.folder)
        return [(step.step, step.metrics["loss"]) for step in steps], [begun[token] for token in sorted(begun)]

    expected, _ = trained("--run.name=store", f"--features.folder={s3.folder()}")
    found, (first, second) = trained("--run.name=local")
    assert [step for step, _ in expected] == list(range(1, 19))
    assert found == expected
    assert (first["ended"], second["ended"], second["stage"]) == ("", "killed", "grounding")
    assert second["done"] in (9, 13)
    ways = {f"{name}-rank{rank}.{way}" for name, way in (("store", "ray"), ("local", "threads")) for rank in range(2)}
    assert {path.name for path in tmp_path.glob("*-rank?.*")} == ways


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_leave_no_cpu_for_data_are_refused(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings("--scaling.cpus_per_worker=64", f"--run.storage={tmp_path}")
    with pytest.raises(ValueError, match="leave Ray Data no CPU"):
        launch.fit(preflight.check(config.load("demo", words)), lambda _: None)


def test_a_run_from_the_command_line(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["--config", "demo", *world.settings("--scaling.num_workers=0", "--tracking.enabled=true"), "--profile"]
    assert train.main(words) == 0
    shown = capsys.readouterr()
    assert "grounding  epoch 2/2" in shown.out
    assert f"profile {tmp_path}/runs/demo/profile/grounding.trace.json.gz" in shown.out
    assert Path("runs/demo/profile/grounding.trace.json.gz").exists()
    assert shown.err == ""
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    experiment = client.get_experiment_by_name("groundray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert len(client.get_metric_history(found.info.run_id, "grounding/loss")) == 18
    assert found.data.metrics["grounding/val/image_to_text/recall_at_5"] >= 0
    assert found.data.params["data.grounding.val.fingerprint"]

    out = tmp_path / "numbers" / "retrieval.json"
    data = f"{world.shards}/captions/val"
    assert analyse.main(["retrieval", "--checkpoint", "runs/demo/model", "--data", data, "--json", str(out)]) == 0
    numbers = json.loads(out.read_text())
    best = json.loads(Path("runs/demo/result.json").read_text())["stages"]["grounding"]
    assert numbers["grounding"]["images"] == 20
    for name in ("text_to_image/recall@10", "image_to_text/median_rank"):
        assert numbers["grounding"]["metrics"][name] == pytest.approx(best[name])
    assert "Retrieval among 20 images" in capsys.readouterr().out


def test_printed_settings_are_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "paper", "--run.seed", "5", "--print-config"]) == 0
    assert "seed: 5" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "steps"), [([], 0), (["--profile"], 5), (["--profile", "2"], 2)])
def test_profile_is_a_setting_with_a_default(words: list[str], steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*words, "--run.seed", "5", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["profile"] == steps


@pytest.mark.parametrize("words", [["--profile", "few"], ["--profile=-1"]])
def test_profile_of_no_number_of_steps_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(words) == 2
    assert "run.profile" in capsys.readouterr().err


def test_a_dead_cluster_is_named_before_anything_starts(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert train.main(world.settings(f"--run.storage={tmp_path}", "--scaling.num_workers=1")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: RAY_ADDRESS: expected a Ray cluster at 127.0.0.1:1, got ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "dmo"], "did you mean 'demo'?"),
        (["--grounding.epoch", "3"], "did you mean 'grounding.epochs'?"),
        (["--grounding.train", "/no/such/shards"], "expected shards at /no/such/shards"),
        (["--grounding.batch_size", "400"], "got a data set of 72"),
        (["--model.language.tokenizer", "/no/such/tokenizer"], "there is no folder /no/such/tokenizer"),
        (["--model.trunk.name", "vgg19"], "expected vgg16, efficientnet_lite0, tiny or timm/NAME, a model of timm"),
        (["--model.trunk.name", "timm/vit_tinny_patch16_224"], "did you mean timm/vit_tiny_patch16_224"),
        (["--model.trunk.name", "timm/crossvit_tiny_240", "--model.image_size=240"], "gives no grid of positions"),
        (["--model.trunk.name", "timm/vit_tiny_patch16_224", "--model.image_size=120"], "a multiple of 16 pixels"),
        (["--model.trunk.weights", "/no/such/file"], "model.trunk.weights: there is no file /no/such/file"),
    ],
)
def test_invalid_settings_or_data_fail_before_anything_starts(
    world: SmallWorld, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*world.settings(f"--run.storage={tmp_path}/runs"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_says_what_would_happen(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = world.settings(
        f"--run.storage={tmp_path}/runs", "--grounding.batch_size=10", "--scaling.cpus_per_worker=0.1"
    )
    assert train.main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "train: 72 samples, 7 steps of 10 x 2 epochs, 2 samples dropped an epoch" in shown
    assert "val: 20 samples, 2 steps of 10" in shown
    assert "trains language stream: " in shown
    assert "train text: none of 360 captions is cut, the longest has " in shown
    assert "val text: none of 20 captions is cut, the longest has " in shown
    assert "validation: at the end of each epoch, best: lowest loss\n" in shown
    assert "warning" not in shown
    assert not (tmp_path / "runs").exists()


def test_storage_that_cannot_be_written_is_named_before_the_run(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "readonly").mkdir()
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "readonly" and writable(path, mode))
    for storage, got in (("readonly/runs", "readonly, which cannot be written"), ("file/runs", "file, a file")):
        words = world.settings(f"--run.storage={tmp_path}/{storage}", "--scaling.num_workers=0")
        message = (
            f"run.storage: expected a folder that can be written, got {tmp_path}/{got}: give another --run.storage"
        )
        assert train.main([*words, "--dry-run"]) == 2
        shown = " ".join(capsys.readouterr().out.split())
        assert f"problem {message}" in shown
        assert "train: 72 samples" in shown
        assert train.main(words) == 2
        assert message in capsys.readouterr().err


def test_text_that_is_cut_is_told_before_training(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = world.settings(
        f"--run.storage={tmp_path}/runs",
        "--grounding.max_tokens=6",
        "--scaling.num_workers=0",
        "--scaling.cpus_per_worker=0.1",
    )
    assert train.main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "warning   grounding.train: " in shown
    assert "of 360 captions are cut at 6 word pieces (max_tokens): " in shown
    assert "raise --grounding.max_tokens" in shown
    preflight.claim(preflight.check(config.load("demo", [*words, "--run.seed=7"])))
    assert train.main([*words, "--dry-run"]) == 2
    assert "run.seed: 7 stored, 0 now" in " ".join(capsys.readouterr().out.split())
    assert train.main(words) == 2  # the name holds a run of another seed, so that nothing is trained
    said = capsys.readouterr().err
    for part in ("train", "val"):
        assert f"warning: grounding.{part}: " in said


def test_a_dry_run_of_the_paper_counts_parameters_and_names_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train.main(["--config", "paper", "--dry-run"]) == 2
    shown = capsys.readouterr().out
    assert "trains language stream: 47,253,504 parameters" in shown
    assert "problem   grounding.train: expected shards at" in shown
    assert "GPUs" in shown


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyse.main(["retrieval", "--checkpoint", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "give a finished run's model/ folder" in capsys.readouterr().err


def test_damaged_shards_are_named_before_training_where_that_is_asked_for(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "train"
    shutil.copytree(world.shards / "captions" / "train", shards)
    words = [
        *world.settings(f"--run.storage={tmp_path}/runs", "--scaling.num_workers=0"),
        f"--grounding.train={shards}",
    ]
    file = shards / "shard-00000.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert train.main([*words, "--verify"]) == 2
    assert f"error: {file}, row group" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert train.main(words) == 1  # at the read
    shown = capsys.readouterr().err
    assert f"error: {file}, row group" in shown
    assert "rerun the same command to resume" in shown


def test_a_run_whose_output_nobody_reads_trains_to_its_end(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = world.settings(
        f"--run.storage={tmp_path}", "--scaling.num_workers=0", "--language.epochs=1", stages="language"
    )
    with open(writer, "w") as closed, monkeypatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stdout", closed)
        assert train.main(words) == 0
    assert capsys.readouterr().err == "note  stdout was closed: the work continues without it\n"
    assert (tmp_path / "demo" / "result.json").is_file()
    assert (tmp_path / "demo" / "model").is_dir()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_with_a_checkpoint(
    world: SmallWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    status: int,
) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--scaling.num_workers=0")
    real = Checkpointer.step_done

    def signalled(checkpointer: Checkpointer, *args: Any) -> None:
        if checkpointer.state.done == 4:
            os.kill(os.getpid(), number)
        real(checkpointer, *args)

    monkeypatch.setattr(Checkpointer, "step_done", signalled)
    assert train.main(words) == status
    assert "stopped: a checkpoint is written" in capsys.readouterr().err
    last = CheckpointStore.at(Folder.at(tmp_path / "demo")).last("grounding")
    assert last is not None
    assert last.done == 5
    monkeypatch.undo()
    assert train.main(words) == 0
    assert "attempt 2  previous attempt stopped; repeating 0 steps (0 s)" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_full_disk_ends_a_run_that_then_goes_on(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--scaling.num_workers=0", "--checkpoints.every_steps=3")
    real, written = Folder.write_bytes, [0]

    def full(folder: Folder, name: str, content: bytes) -> None:
        written[0] += name == "optimizer.safetensors"
        if name == "optimizer.safetensors" and written[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, name, content)

    monkeypatch.setattr(Folder, "write_bytes", full)
    assert train.main(words) == 1
    shown = capsys.readouterr().err
    assert "checkpoint" in shown
    assert "cannot be written: [Errno 28] No space left on device" in shown
    assert "rerun the same command to resume" in shown
    monkeypatch.undo()
    assert train.main(words) == 0
    assert "resumes after step 6" in capsys.readouterr().out


def test_a_storage_that_cannot_be_written_is_said_before_anything_starts(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert train.main(world.settings(f"--run.storage={tmp_path}/file")) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
