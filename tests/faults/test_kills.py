"""SIGKILL of a worker, a node and the driver, at five places each; workers that hang, are stopped or take all memory.

Each run ends with the weights, samples and metrics of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import OPTIMISED, SmallWorld

from groundray.storage.folder import Folder
from groundray.training import attempts, history
from groundray.training.events import StepDone
from groundray.training.layout import read_result

HERE = Path(__file__).parent
EPOCH = 9  # steps of one
BOTH = {"grounding": 2 * EPOCH, "language": 2 * EPOCH}  # steps of each stage
MONITOR = "RAY_memory_monitor_refresh_ms"
# Ray notices a dead node within seconds, not a minute; and others may take the memory of this machine
FAST = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_AUTH_MODE": "disabled",
    MONITOR: "0",
}
SAMPLE = [("worker", "step")]  # of drivers, those that test_stores kills


@dataclass(frozen=True)
class Ended:
    """The results of a run that must not depend on faults."""

    weights: dict[str, bytes]
    samples: list[tuple[str, int, list[list[str]] | None]]


@dataclass(frozen=True)
class Saboteur:
    """Starts runs of a small world, and plans faults in them.

    Attributes:
        words: arguments of `groundray.train`.
        folder: holds the plan, which `site/sabotage.py` reads.
        storage: of the runs.
    """

    words: list[str]
    folder: Path
    storage: Folder

    def plan(self, **plan: object) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "plan.json").write_text(json.dumps(plan))

    @property
    def happened(self) -> bool:
        return (self.folder / "happened").exists()

    def start(
        self,
        *more: str,
        nodes: int = 0,
        hosts: int = 0,
        within: Sequence[str] = (),
        sabotaged: bool = True,
        log: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start the run in processes and on a cluster of its own.

        Args:
            nodes: number of nodes of the cluster; 0 for a cluster that the run starts.
            hosts: like `nodes`, each in a network namespace of its own.
            within: a command prefix, run in the new namespaces.
            log: file for stdout and stderr; by default they are pipes.
        """
        command = [sys.executable, "-m", "groundray.train", "--config", "demo", *self.words, *more]
        if nodes or hosts:
            cluster, number = ("hosts.py", hosts) if hosts else ("nodes.py", nodes)
            command = [sys.executable, str(HERE / cluster), str(number), str(self.folder), *command]
        environment = {**os.environ, **FAST, "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        environment.pop("RAY_ADDRESS", None)
        if sabotaged:
            environment |= {"PYTHONPATH": f"{HERE / 'site'}:{HERE.parents[1]}", "GROUNDRAY_SABOTAGE": str(self.folder)}
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(log.open("w")) if log else subprocess.PIPE
            return subprocess.Popen(
                [*(apart("--net", "--uts") if hosts else apart()), *within, *command],
                env=environment,
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT if log else out,
                text=True,
            )

    def run(self, *more: str, seconds: int = 280, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end, and kill the run after `seconds`; see `start`."""
        with self.start(*more, **how) as running:
            try:
                out, errors = running.communicate(timeout=seconds)
            finally:
                running.kill()
        return subprocess.CompletedProcess(running.args, running.returncode, out, errors)

    def losses(self, name: str) -> list[tuple[int, float]]:
        told = history.read(self.storage / name)
        return [(event.step, event.metrics["loss"]) for event, _ in told if isinstance(event, StepDone)]

    def ended(self, name: str = "demo") -> Ended:
        folder = self.storage / name
        told = history.read(folder)
        files = [file for file in folder.files() if file.startswith("model/") and file.endswith(".safetensors")]
        return Ended(
            {file: folder.read_bytes(file) for file in files},
            [(event.stage, event.step, samples) for event, samples in told if isinstance(event, StepDone)],
        )


def apart(*more: str) -> list[str]:
    """Returns a command prefix that isolates processes in namespaces, or nothing if the machine does not allow it."""
    words = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--pid",
        "--mount",
        "--fork",
        "--kill-child",
        "--mount-proc",
        *more,
    ]
    allowed = shutil.which("unshare") and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    # the first process of a namespace cannot be killed from inside: it is a shell, not the command
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
    return Saboteur(words, folder, Folder.at(folder / "runs"))


@pytest.fixture
def saboteur(world: SmallWorld, tmp_path: Path) -> Saboteur:
    return saboteur_in(tmp_path, world)


@pytest.fixture(scope="module")
def unharmed(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Returns what an undisturbed run leaves."""
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
def test_resume_after_sigkill_gives_equal_weights(saboteur: Saboteur, unharmed: Ended, who: str, when: str) -> None:
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
    assert [note["ended"] for note in notes(saboteur)] == ["", "killed"]
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize(("who", "when"), [("worker", "step"), ("worker", "validation"), ("driver", "step")])
def test_resume_within_a_schedule_an_average_and_adapters_gives_equal_weights(
    world: SmallWorld, tmp_path: Path, who: str, when: str
) -> None:
    """On two workers, which have the same average."""
    saboteur = saboteur_in(tmp_path, world, "grounding")
    words = (*OPTIMISED, "--grounding.precision=float64")
    alone = saboteur.run(*words, "--run.name=alone", "--scaling.num_workers=2", sabotaged=False)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    saboteur.plan(who=who, when=when, count={"step": 7, "validation": 1}[when])
    ran = saboteur.run(*words)
    assert saboteur.happened, ran.stdout + ran.stderr
    if who == "driver":
        ran = saboteur.run(*words)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert saboteur.ended() == saboteur.ended("alone")


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("when", ["validation", "epoch"])
def test_stage_ends_early_after_the_same_step_although_a_worker_is_killed(
    world: SmallWorld, tmp_path: Path, when: str
) -> None:
    """Killed in a validation within an epoch, and at the validation that decides the end."""
    words = (
        *("--grounding.epochs=4", "--grounding.validate_every_steps=4", "--grounding.patience=3"),
        *("--grounding.best=text_to_image/recall@10:max", "--grounding.optimizer.lr=0.003"),
    )
    ended = []
    for name, fault in (("unharmed", 99), ("killed", 2 if when == "validation" else 3)):
        (tmp_path / name).mkdir()
        one = saboteur_in(tmp_path / name, world, stages="grounding")
        one.plan(who="worker", when=when, count=fault)
        ran = one.run(*words)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert one.happened == (name == "killed")
        result = read_result(one.storage / "demo")
        assert result is not None
        ended.append((one.ended(), result["best"]))
    assert ended[0] == ended[1]
    assert ended[0][1]["grounding"]["ended"] == "stopped early: no better text_to_image/recall@10 for 3 validations"


def assert_one_whole_run(saboteur: Saboteur, stages: Mapping[str, int] = BOTH, attempts: int = 2) -> None:
    """Assert that MLflow has one run, with each step of each stage exactly once."""
    client = mlflow.MlflowClient(f"sqlite:///{saboteur.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("groundray")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    for stage, number in stages.items():
        steps = [point.step for point in client.get_metric_history(found.info.run_id, f"{stage}/loss")]
        assert sorted(steps) == list(range(1, number + 1))
        epochs = [point.step for point in client.get_metric_history(found.info.run_id, f"{stage}/val/loss")]
        assert sorted(epochs) == list(range(EPOCH, number + 1, EPOCH))
    assert found.data.metrics["recovery/attempts"] == attempts
    assert found.data.metrics["recovery/repeated_steps"] >= 0
    assert found.data.metrics["recovery/first_step_seconds"] > 0


def notes(saboteur: Saboteur) -> list[dict[str, Any]]:
    """Returns what each attempt began with, in order."""
    begun = attempts.begun(saboteur.storage / "demo")
    return [begun[mark] for mark in sorted(begun)]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_resume_after_a_worker_is_killed_before_its_group_is_complete(saboteur: Saboteur, unharmed: Ended) -> None:
    """The next group needs the resources of the failed one; the cluster has no others."""
    saboteur.plan(who="worker", when="begin", count=1)
    ran = saboteur.run("--scaling.wait_minutes=4", seconds=800)
    assert saboteur.happened
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert saboteur.ended() == unharmed


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_run_shrinks_to_one_worker_and_grows_to_two(world: SmallWorld, tmp_path: Path) -> None:
    """The second node is removed and added again: equal samples and losses, with dropout."""
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
    begun = notes(saboteur)
    assert (saboteur.folder / "shrink.happened").exists()
    assert (saboteur.folder / "grow.happened").exists()
    assert [note["workers"] for note in begun] == [2, 1, 2]
    assert begun[2]["ended"] == "resized"
    assert begun[2]["repeated_steps"] == 0


@pytest.mark.ray
@pytest.mark.chaos
def test_drained_node_gives_a_checkpoint_and_no_step_is_repeated(saboteur: Saboteur, unharmed: Ended) -> None:
    """As for a spot machine: a checkpoint is written, and the run resumes on another node."""
    saboteur.plan(drain=6, slow=0.8)
    ran = saboteur.run(nodes=3)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
    assert (saboteur.folder / "drain.happened").exists()
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)
    assert [(note["ended"], note["repeated_steps"], note["preemptions"]) for note in notes(saboteur)] == [
        ("", 0, 0),
        ("preempted", 0, 1),
    ]


@pytest.mark.ray
@pytest.mark.chaos
def test_run_waits_for_machines_of_an_autoscaler(world: SmallWorld, tmp_path: Path) -> None:
    """The cluster has one CPU and a head without CPUs; two workers and their data tasks need 1.8."""
    saboteur = saboteur_in(tmp_path, world, "visual")
    saboteur.plan()
    claimed = saboteur.folder / "runs" / "waits" / "config.yaml"

    def grow() -> None:
        while not claimed.exists():
            time.sleep(0.2)
        time.sleep(10)
        (saboteur.folder / "grow").touch()

    threading.Thread(target=grow, daemon=True).start()
    ran = saboteur.run("--run.name=waits", nodes=1, sabotaged=False)
    assert ran.returncode == 0, ran.stderr
    waits = r"note  waiting for machines with 1\.8 CPUs, for (59\.\d|60\.0) minutes at most \(scaling\.wait_minutes\)"
    assert re.search(waits, ran.stdout), ran.stdout
    assert "visual  done" in ran.stdout


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_controller_ends_the_run_and_is_named(saboteur: Saboteur, unharmed: Ended) -> None:
    """The controller is a process of Ray Train beside the driver; rerunning the command resumes."""
    saboteur.plan(slow=0.5)
    log = saboteur.folder / "log"
    with saboteur.start(log=log) as running:
        try:
            until = time.monotonic() + 400
            while "step 1/" not in log.read_text() and time.monotonic() < until:
                time.sleep(0.2)
            for controller in processes(running, "TrainController"):
                os.kill(controller, signal.SIGKILL)
            assert running.wait(60) == 1
        finally:
            running.kill()
    assert "error: the run's controller died: its process on " in log.read_text()
    ran = saboteur.run(sabotaged=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)


def processes(driver: subprocess.Popen[Any], word: str) -> set[int]:
    """Returns the descendants of a driver whose title or command contains a word."""
    commands: dict[int, list[bytes]] = {}
    children: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            commands[int(place.name)] = (place / "cmdline").read_bytes().split(b"\0")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found, below = set(), [driver.pid]
    while below:
        one = below.pop()
        below += children.get(one, [])
        if any(word.encode() in part for part in commands.get(one, ())) and b"unshare" not in commands[one]:
            found.add(one)
    return found


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_worker_that_hangs_in_a_step_is_ended_with_its_stack_traces(saboteur: Saboteur, unharmed: Ended) -> None:
    """The other worker waits for it, and is not reported as hanging."""
    saboteur.plan(who="worker", what="hang", when="step", count=7)
    ran = saboteur.run("--scaling.hang_minutes=0.8", seconds=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
    (stacks,) = (saboteur.folder / "runs" / "demo" / "stacks").glob("*.txt")
    assert "in hang\n" in stacks.read_text()
    records = (saboteur.folder / "runs" / "demo" / "stacks").glob("flight-*/*")
    assert sorted(record.name for record in records) == ["rank0", "rank1"]
    assert "while worker 0 waited for it" in ran.stdout
    assert f"{stacks}" in ran.stdout
    assert "worker 1 gave no heartbeat for " in ran.stdout
    assert "worker 0 gave" not in ran.stdout
    assert notes(saboteur)[1]["ended"] == "hung"
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [2, 1])
def test_worker_stopped_by_sigstop_is_ended(saboteur: Saboteur, unharmed: Ended, workers: int) -> None:
    """Its own watchdog is stopped too. With two workers, the other one waits in a collective."""
    saboteur.plan(who="worker", what="stop", when="step", count=7)
    log = saboteur.folder / "log"
    words = ("--scaling.hang_minutes=0.8", f"--scaling.num_workers={workers}", "--scaling.chunks=2")
    with saboteur.start(*words, log=log) as running:
        try:
            until = time.monotonic() + 400
            while "attempt 2  first step" not in log.read_text() and time.monotonic() < until:
                time.sleep(0.5)
            assert not [one for one in processes(running, "RayTrainWorker") if stopped(one)]
            assert running.wait(300) == 0, log.read_text()
        finally:
            running.kill()
    said = log.read_text()
    print(said)
    assert f"worker {workers - 1} has not responded for 1" in said
    assert "s (scaling.hang_minutes); the run resumes from its last checkpoint" in said
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)


def stopped(process: int) -> bool:
    return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_worker_that_takes_all_memory_is_ended_by_ray(saboteur: Saboteur, unharmed: Ended) -> None:
    """As on a machine of 5 GB, most of which Ray and the run need."""
    saboteur.plan(who="worker", what="devour", when="step", count=7)
    with limited(5_000_000_000) as within:
        ran = saboteur.run(within=within, seconds=800)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)
    assert "worker 1 died: its machine ran out of memory: use smaller chunks (scaling.chunks, " in ran.stdout
    assert notes(saboteur)[1]["ended"] == "killed"
    assert saboteur.ended() == unharmed
    assert_one_whole_run(saboteur)


@contextlib.contextmanager
def limited(size: int) -> Iterator[list[str]]:
    """Yields a command prefix that limits a command and its descendants to `size` bytes of memory.

    They see that limit as the machine's memory. For use in a mount namespace.
    """
    group, root = memory_group(size)
    enter = f'echo $$ > "{group}/cgroup.procs" && mount --bind "{group}" "{root}" && unset {MONITOR} && exec "$@"'
    try:
        yield ["bash", "-c", enter, "limited"]
    finally:
        until = time.monotonic() + 10
        while group.exists() and time.monotonic() < until:
            with contextlib.suppress(OSError):  # its last processes are ending
                group.rmdir()
            time.sleep(0.1)


def memory_group(size: int) -> tuple[Path, Path]:
    """Create a cgroup limited to `size` bytes; returns it and the mount point of its hierarchy."""
    ours = dict(line.split(":")[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    problems = []
    for root, name, limit in (
        ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "", "memory.max"),
    ):
        above = Path(root) / ours.get(name, "").lstrip("/")
        group = (above if above.exists() else Path(root)) / f"groundray-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(size))
            return group, Path(root)
        except OSError as error:
            problems.append(str(error))
            if group.exists():
                group.rmdir()
    pytest.skip(f"no group of processes with little memory can be made here: {'; '.join(problems)}")


@pytest.mark.ray
@pytest.mark.chaos
def test_run_without_room_for_its_workers_names_what_is_missing(saboteur: Saboteur) -> None:
    saboteur.plan()
    ran = saboteur.run("--scaling.cpus_per_worker=1.1", "--scaling.wait_minutes=0.7", nodes=3)
    assert ran.returncode == 1
    assert "error: waited" in ran.stderr
    assert "(scaling.wait_minutes) for 2 workers with 1.1 CPUs each; free in the cluster: 3 of 3 CPUs" in ran.stderr
    assert "note  waiting for 2 workers" in ran.stdout
