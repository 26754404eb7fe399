"""SIGKILL of a worker, of a node, of the driver, at five places each: the run ends as one that was not killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from conftest import SmallWorld

from groundray.storage import Folder
from groundray.training import attempts, history
from groundray.training.events import StepDone

HERE = Path(__file__).parent
STEPS = 18  # of each of the two stages
# Ray notices a dead node within seconds, not a minute
FAST = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_AUTH_MODE": "disabled",
}
SAMPLE = [("worker", "step"), ("driver", "write")]


@dataclass(frozen=True)
class Ended:
    """What a run has left, as far as it may not depend on what happened to it."""

    weights: dict[str, bytes]
    samples: list[tuple[str, int, list[list[str]] | None]]


@dataclass(frozen=True)
class Saboteur:
    """Runs of a small world, and what shall happen to them."""

    words: list[str]
    folder: Path

    def plan(self, **plan: object) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "plan.json").write_text(json.dumps(plan))

    @property
    def happened(self) -> bool:
        return (self.folder / "happened").exists()

    def run(
        self, *more: str, nodes: int = 0, sabotaged: bool = True, seconds: int = 280
    ) -> subprocess.CompletedProcess[str]:
        """The run in processes of its own, apart from all others, on a cluster of its own."""
        command = [sys.executable, "-m", "groundray.train", "--config", "demo", *self.words, *more]
        if nodes:
            command = [sys.executable, str(HERE / "nodes.py"), str(nodes), str(self.folder), *command]
        environment = {**os.environ, **FAST, "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        environment.pop("RAY_ADDRESS", None)
        if sabotaged:
            environment |= {"PYTHONPATH": str(HERE / "site"), "GROUNDRAY_SABOTAGE": str(self.folder)}
        return subprocess.run(
            [*apart(), *command], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=seconds
        )

    def losses(self, name: str) -> list[tuple[int, float]]:
        told = history.read(Folder.at(self.folder / "runs" / name))
        return [(event.step, event.metrics["loss"]) for event, _ in told if isinstance(event, StepDone)]

    def ended(self, name: str = "demo") -> Ended:
        storage = self.folder / "runs" / name
        told = history.read(Folder.at(storage))
        return Ended(
            {str(path.relative_to(storage)): path.read_bytes() for path in storage.rglob("model/**/*.safetensors")},
            [(event.stage, event.step, samples) for event, samples in told if isinstance(event, StepDone)],
        )


def apart() -> list[str]:
    """Words before a command that keep its processes apart from others, where this machine allows it."""
    words = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    allowed = shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    # the first process of such a room cannot be killed from inside of it: a shell is it, and not the command
    return [*words, "bash", "-c", '"$@"; exit $?', "apart"] if allowed else []


def saboteur_in(folder: Path, world: SmallWorld, stages: str = "grounding,language") -> Saboteur:
    words = world.settings(
        "--checkpoints.every_steps=4",
        "--run.log_samples=true",
        "--tracking.enabled=true",
        "--scaling.cpus_per_worker=0.7",
        f"--run.storage={folder}/runs",
        stages=stages,
    )
    return Saboteur(words, folder)


@pytest.fixture
def saboteur(world: SmallWorld, tmp_path: Path) -> Saboteur:
    return saboteur_in(tmp_path, world)


@pytest.fixture(scope="module")
def unharmed(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What a run leaves that nothing happened to."""
    one = saboteur_in(tmp_path_factory.mktemp("unharmed"), world)
    ran = one.run("--scaling.num_workers=0", "--scaling.chunks=2", sabotaged=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return one.ended()


def cases() -> list[object]:
    return [
        pytest.param(who, when, marks=[] if (who, when) in SAMPLE else pytest.mark.chaos)
        for who in ("worker", "node", "driver")
        for when in ("step", "write", "validation", "epoch", "stage")
    ]


@pytest.mark.ray
@pytest.mark.parametrize(("who", "when"), cases())
def test_a_killed_run_ends_as_one_that_was_not(saboteur: Saboteur, unharmed: Ended, who: str, when: str) -> None:
    counts = {"step": 7, "write": 2, "validation": 1, "epoch": 1, "stage": 1}
    saboteur.plan(who=who, when=when, count=counts[when])
    nodes = 3 if who == "node" else 0
    ran = saboteur.run(nodes=nodes)
    assert saboteur.happened, ran.stdout + ran.stderr
    if who == "driver":
        assert ran.returncode != 0
        ran = saboteur.run()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)  # with the seconds to the first step
    assert "attempt 2  the one before was killed" in ran.stdout
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)


def assert_one_whole_run(saboteur: Saboteur) -> None:
    """MLflow has one run, in which no step is missing and none is there twice."""
    client = mlflow.MlflowClient(f"sqlite:///{saboteur.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("groundray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    for stage in ("grounding", "language"):
        steps = [point.step for point in client.get_metric_history(found.info.run_id, f"{stage}/loss")]
        assert sorted(steps) == list(range(1, STEPS + 1))
        epochs = [point.step for point in client.get_metric_history(found.info.run_id, f"{stage}/val/loss")]
        assert sorted(epochs) == [9, 18]
    assert found.data.metrics["recovery/attempts"] == 2
    assert found.data.metrics["recovery/repeated_steps"] >= 0
    assert found.data.metrics["recovery/first_step_seconds"] > 0


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_run_goes_from_two_workers_to_one_and_back(world: SmallWorld, tmp_path: Path) -> None:
    """As its second node is taken away and comes back: same samples, same dropout, same losses."""
    saboteur = saboteur_in(tmp_path, world, "grounding")
    words = ("--grounding.epochs=12", "--grounding.precision=float64", "--grounding.dropout=0.3")
    saboteur.plan(resize=8, slow=1.0)
    ran = saboteur.run(*words, "--scaling.num_workers=[1,2]", nodes=2, seconds=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
    alone = saboteur.run(*words, "--run.name=alone", "--scaling.num_workers=0", "--scaling.chunks=2", sabotaged=False)
    assert alone.returncode == 0, alone.stdout + alone.stderr

    ours, theirs = (dict(saboteur.losses(name)) for name in ("demo", "alone"))
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert saboteur.ended().samples == saboteur.ended("alone").samples
    begun = attempts.begun(Folder.at(saboteur.folder / "runs" / "demo"))
    assert (saboteur.folder / "shrink.happened").exists()
    assert (saboteur.folder / "grow.happened").exists()
    assert [begun[number]["workers"] for number in sorted(begun)] == [2, 1, 2]
    assert begun[3]["ended"] == "resized"
    assert begun[3]["repeated_steps"] == 0


@pytest.mark.ray
@pytest.mark.chaos
def test_a_node_that_is_drained_gives_notice(saboteur: Saboteur, unharmed: Ended) -> None:
    """As a spot machine is before it is taken away: a checkpoint is written, and the run goes on elsewhere."""
    saboteur.plan(drain=6, slow=0.8)
    ran = saboteur.run(nodes=3)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
    assert (saboteur.folder / "drain.happened").exists()
    assert "attempt 2  the one before was preempted; 0 steps" in ran.stdout
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)
    begun = attempts.begun(Folder.at(saboteur.folder / "runs" / "demo"))
    assert [begun[number]["preemptions"] for number in sorted(begun)] == [0, 1]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_run_waits_for_machines_that_come_when_they_are_asked_for(saboteur: Saboteur) -> None:
    """One node of one CPU is there, and the head has none: two workers and what reads for them take 1.4."""
    saboteur.plan()
    claimed = saboteur.folder / "runs" / "waits" / "config.yaml"

    def grow() -> None:
        while not claimed.exists():
            time.sleep(0.2)
        time.sleep(10)
        (saboteur.folder / "grow").touch()

    threading.Thread(target=grow, daemon=True).start()
    ran = saboteur.run("--stages=visual", "--run.name=waits", nodes=1, sabotaged=False)
    assert ran.returncode == 0, ran.stderr
    assert "note  waiting for machines with 1.4 CPUs, for 60.0 minutes at most (scaling.wait_minutes)" in ran.stdout
    assert "visual  done" in ran.stdout


@pytest.mark.ray
@pytest.mark.chaos
def test_a_run_that_finds_no_room_says_what_is_missing_and_ends(saboteur: Saboteur) -> None:
    saboteur.plan()
    ran = saboteur.run("--scaling.cpus_per_worker=1.1", "--scaling.wait_minutes=0.7", nodes=3)
    assert ran.returncode == 1
    assert "error: waited" in ran.stderr
    assert "(scaling.wait_minutes) for 2 workers with 1.1 CPUs each; free in the cluster: 3 of 3 CPUs" in ran.stderr
    assert "note  waiting for 2 workers" in ran.stdout
