"""One long run, killed thirty times at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_kills import apart, processes

from groundray.storage.folder import Folder
from groundray.training import attempts, history
from groundray.training.events import StepDone

KILLS = 30
TRAINS = 12.0  # seconds of training, at most, from where an attempt begins to its end
STARTS = 25.0  # seconds, at most, from one kill to the next, where that may come before anything trains
LONGEST = 60.0  # for which an attempt is waited for: a kill may have met a worker that was to end anyway
EARLY = 0.2  # of the kills do


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_thirty_kills_over_one_demo(tmp_path: Path) -> None:
    """A worker or the driver, whatever they are at; the run ends as one that nothing happened to."""
    subprocess.run(
        [sys.executable, "-m", "groundray.prepare", "scenes", "--out", "data/scenes"], cwd=tmp_path, check=True
    )
    chance, kills, began = random.Random(3), 0, time.monotonic()
    folder = Folder.at(tmp_path / "runs" / "soaked")
    while True:
        driver = train(tmp_path, "soaked", "--checkpoints.every_steps=20")
        while driver.poll() is None and kills < KILLS:
            if chance.random() < EARLY:
                pause(driver, chance.uniform(0, STARTS))
            else:
                there, until = len(attempts.begun(folder)), time.monotonic() + LONGEST
                while driver.poll() is None and len(attempts.begun(folder)) == there and time.monotonic() < until:
                    time.sleep(0.2)
                pause(driver, chance.uniform(0, TRAINS))
            workers = sorted(processes(driver, "RayTrainWorker"))
            drivers = sorted(processes(driver, "groundray.train"))[-1:]
            victims = drivers if not workers or chance.random() < 1 / 3 else workers
            if driver.poll() is None and victims:
                victim = chance.choice(victims)
                os.kill(victim, signal.SIGKILL)
                kills += 1
                what = "a worker" if victim in workers else "the driver"
                told = (
                    f"{time.monotonic() - began:.0f} s: kill {kills}, {what}, in attempt {len(attempts.begun(folder))}"
                )
                print(told, flush=True)
        if driver.wait() == 0:
            break
    print(f"{time.monotonic() - began:.0f} s in all, {kills} kills", flush=True)
    assert kills == KILLS
    assert train(tmp_path, "unharmed").wait() == 0

    ours, theirs = (tmp_path / "runs" / name for name in ("soaked", "unharmed"))
    files = sorted(path.relative_to(theirs) for path in theirs.rglob("model/**/*.safetensors"))
    assert len(files) > 5
    for file in files:
        assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
    assert used(ours) == used(theirs)
    assert len(attempts.begun(folder)) > KILLS / 2  # most of them had begun to train


def pause(driver: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait so long, or until the driver has ended."""
    until = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < until:
        time.sleep(0.2)


def train(folder: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    """The demo under a name, in processes apart from all others."""
    words = ["--config", "demo", f"--run.name={name}", "--run.log_samples=true", "--tracking.enabled=false", *more]
    return subprocess.Popen([*apart(), sys.executable, "-m", "groundray.train", *words], cwd=folder)


def used(folder: Path) -> list[tuple[str, int, list[list[str]] | None]]:
    """Which samples each step used."""
    told = history.read(Folder.at(folder))
    return [(event.stage, event.step, samples) for event, samples in told if isinstance(event, StepDone)]
