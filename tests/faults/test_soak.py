"""One long run, killed thirty times at random times."""

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
TRAINING_SECONDS = 12.0  # maximum time from the beginning of an attempt to its kill
EARLY_SECONDS = 25.0  # maximum time from one kill to an early one
MAX_WAIT_SECONDS = 180.0  # for the next attempt: a kill may have met a worker that was ending anyway, on a busy machine
EARLY_FRACTION = 0.2  # of the kills, which may come before training starts


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_demo_killed_thirty_times_ends_with_equal_weights(tmp_path: Path) -> None:
    """Each kill hits a worker or the driver at a random time."""
    subprocess.run(
        [sys.executable, "-m", "groundray.prepare", "scenes", "--out", "data/scenes"], cwd=tmp_path, check=True
    )
    chance, kills, began = random.Random(3), 0, time.monotonic()
    folder = Folder.at(tmp_path / "runs" / "soaked")
    while True:
        driver = train(tmp_path, "soaked", "--checkpoints.every_steps=20")
        while driver.poll() is None and kills < KILLS:
            if chance.random() < EARLY_FRACTION:
                pause(driver, chance.uniform(0, EARLY_SECONDS))
            else:
                before, until = len(attempts.begun(folder)), time.monotonic() + MAX_WAIT_SECONDS
                while driver.poll() is None and len(attempts.begun(folder)) == before and time.monotonic() < until:
                    time.sleep(0.2)
                pause(driver, chance.uniform(0, TRAINING_SECONDS))
            workers = sorted(processes(driver, "RayTrainWorker"))
            drivers = sorted(processes(driver, "groundray.train"))[-1:]
            victims = drivers if not workers or chance.random() < 1 / 3 else workers
            if driver.poll() is None and victims:
                victim = chance.choice(victims)
                os.kill(victim, signal.SIGKILL)
                kills += 1
                what = "a worker" if victim in workers else "the driver"
                message = (
                    f"{time.monotonic() - began:.0f} s: kill {kills}, {what}, in attempt {len(attempts.begun(folder))}"
                )
                print(message, flush=True)
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
    """Wait for `seconds`, or until the driver has ended."""
    until = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < until:
        time.sleep(0.2)


def train(folder: Path, name: str, *more: str) -> subprocess.Popen[bytes]:
    """Start the demo under a name, in namespaces of its own."""
    words = ["--config", "demo", f"--run.name={name}", "--run.log_samples=true", "--tracking.enabled=false", *more]
    return subprocess.Popen([*apart(), sys.executable, "-m", "groundray.train", *words], cwd=folder)


def used(folder: Path) -> list[tuple[str, int, list[list[str]] | None]]:
    """Returns the samples of each step."""
    events = history.read(Folder.at(folder))
    return [(event.stage, event.step, samples) for event, samples in events if isinstance(event, StepDone)]
