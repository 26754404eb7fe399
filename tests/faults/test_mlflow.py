"""An MLflow server that goes away in mid-run: training goes on as if it were there, and in the end it has every step
once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from conftest import SmallWorld
from test_kills import Saboteur, saboteur_in

from groundray.storage.folder import Folder
from groundray.training import history
from groundray.training.events import StepDone

PATIENCE_SECONDS = 200.0
STEPS = 180


@dataclass
class Server:
    """A tracking server of this machine, in a process group of its own."""

    folder: Path
    port: int
    running: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder}/server.db"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ("--host=127.0.0.1", f"--port={self.port}", "--workers=1", f"--backend-store-uri={self.store}")
        command = [sys.executable, "-m", "mlflow", "server", *options, f"--artifacts-destination={self.folder}/files"]
        alone = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # its helpers take seconds to begin
        with (self.folder / "server.log").open("ab") as log:
            self.running = subprocess.Popen(
                command, stdout=log, stderr=log, env=alone, start_new_session=True, cwd=self.folder
            )
        wait_until(self.answers)

    def kill(self) -> None:
        if self.running:
            self.signal(signal.SIGKILL)
            self.running.wait()
            self.running = None

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.address}/health", timeout=1).status == 200
        return False

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        if self.running:
            os.killpg(self.running.pid, number)

    def steps(self) -> list[int]:
        """Return the logged steps of the only run; empty if there is no run."""
        client = mlflow.MlflowClient(self.store)
        experiment = client.get_experiment_by_name("groundray")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        assert len(found) <= 1
        return [point.step for run in found for point in client.get_metric_history(run.info.run_id, "grounding/loss")]

    def status(self) -> str:
        client = mlflow.MlflowClient(self.store)
        experiment = client.get_experiment_by_name("groundray")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        return found.info.status


def wait_until(so: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not so():
        assert time.monotonic() < until, f"not so after {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(tmp_path, port)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class Tracked:
    """A run of many slow steps that a server tracks."""

    saboteur: Saboteur
    server: Server

    def start(self) -> subprocess.Popen[str]:
        words = ("--grounding.epochs=20", "--scaling.num_workers=0", f"--tracking.uri={self.server.address}")
        return self.saboteur.start(*words, log=self.log)

    @property
    def log(self) -> Path:
        return self.saboteur.folder / "log"

    def has_failed(self) -> bool:
        """Return True if the run has reported that it cannot be tracked."""
        return "tracking failed, training continues: " in self.log.read_text()

    def hurry(self) -> None:
        (self.saboteur.folder / "quick").touch()

    def times(self) -> dict[int, float]:
        """When each step so far was done, in seconds since 1970."""
        told = history.read(Folder.at(self.saboteur.folder / "runs" / "demo"))
        return {event.step: event.time for event, _ in told if isinstance(event, StepDone)}


@pytest.fixture
def tracked(server: Server, world: SmallWorld, tmp_path: Path) -> Tracked:
    saboteur = saboteur_in(tmp_path, world, "grounding")
    saboteur.plan(slow=0.3)
    return Tracked(saboteur, server)


@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=pytest.mark.chaos)], ids=["killed", "hung"])
def test_a_server_that_is_gone_for_a_while_holds_up_nothing(tracked: Tracked, server: Server, killed: bool) -> None:
    with tracked.start() as running:
        try:
            wait_until(server.steps)
            if killed:
                server.kill()
            else:
                server.signal(signal.SIGSTOP)
            gone = time.time()
            wait_until(tracked.has_failed)
            done = len(tracked.times())
            wait_until(lambda: len(tracked.times()) >= done + 8)
            back = time.time()
            assert len(tracked.times()) < STEPS
            if killed:
                server.start()
            else:
                server.signal(signal.SIGCONT)
            tracked.hurry()
            assert running.wait(PATIENCE_SECONDS) == 0
        finally:
            running.kill()
    meanwhile = [moment for moment in tracked.times().values() if gone < moment < back]
    pauses = [after - before for before, after in itertools.pairwise([gone, *meanwhile, back])]
    print(f"{len(meanwhile)} steps in {back - gone:.1f} s, at most {max(pauses):.2f} s for one")
    assert max(pauses) < 5  # MLflow's client has patience for 10 s
    assert sorted(server.steps()) == list(range(1, STEPS + 1))
    assert server.status() == "FINISHED"
    assert "could not be logged" not in tracked.log.read_text()


@pytest.mark.chaos
def test_next_start_logs_what_the_server_missed(tracked: Tracked, server: Server) -> None:
    tracked.hurry()
    with tracked.start() as running:
        try:
            wait_until(server.steps)
            server.kill()
            assert running.wait(PATIENCE_SECONDS) == 0
        finally:
            running.kill()
    assert "could not be logged; the run itself is complete" in tracked.log.read_text()
    assert len(server.steps()) < STEPS
    server.start()
    with tracked.start() as running:
        assert running.wait(PATIENCE_SECONDS) == 0
    assert sorted(server.steps()) == list(range(1, STEPS + 1))
    assert server.status() == "FINISHED"
