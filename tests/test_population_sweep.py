"""Population-based training from the command line, and sweeps that are killed anywhere."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SmallWorld

from groundray.data.plan import Cursor
from groundray.runtime.tune import population
from groundray.storage.folder import Folder
from groundray.sweep import main
from groundray.training import attempts, history, identity
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import EpochDone, StepDone

METRIC = "grounding/loss"
SPACE = "grounding.optimizer.lr=loguniform:1e-5:1e-2"
STEPS = 9  # of an epoch


def words(world: SmallWorld, storage: Path, *more: str) -> list[str]:
    """A population of three members, whose three generations have an epoch each."""
    settings = world.settings(f"--run.storage={storage}", "--run.name=swept", "--grounding.epochs=3")
    own = ["--space", SPACE, "--metric", METRIC, "--search=pbt", "--num-samples=3", "--perturb-every=1"]
    return [*own, *settings, "--tracking.enabled=false", *more]


def trials_of(storage: Path) -> dict[str, Any]:
    return {trial["name"]: trial for trial in json.loads((storage / "swept" / "trials.json").read_text())}


def check_lineage(storage: Path) -> None:
    """Check that each run trained its epochs once, and that a follower's began at its leader's checkpoint."""
    folder = storage / "swept"
    generations = population.read(Folder.at(folder))
    assert len(generations) == 3
    trials = trials_of(storage)
    last = generations[-1]
    assert {name for name, trial in trials.items() if trial["state"] == "finished"} == {member.run for member in last}
    assert len(trials) == 3 + 2  # one follows after each of two generations
    for name, trial in trials.items():
        run = folder / "trials" / name
        events = [event for event, _ in history.read(Folder.at(run), print)]
        steps = [event.step for event in events if isinstance(event, StepDone)]
        until = 3 if trial["state"] == "finished" else trial["epochs"]
        assert steps == list(range(STEPS * trial["since"] + 1, STEPS * until + 1))
        losses = [event.metrics["loss"] for event in events if isinstance(event, EpochDone)]
        assert trial["value"] == min(losses)
        assert (run / "model").exists() == (trial["state"] == "finished")
        claimed = identity.read(Folder.at(run))
        assert claimed is not None
        grounding = claimed.settings.grounding
        assert grounding is not None
        assert grounding.optimizer.lr == trial["values"]["grounding.optimizer.lr"]
        if trial["follows"]:
            leader = CheckpointStore.at(Folder.at(folder / "trials" / trial["follows"]))
            kept = {one.name: one.cursor for one in leader.committed("grounding")}
            assert kept[Path(trial["continue_from"]).name] == Cursor(trial["since"])


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_the_weakest_member_takes_up_the_strongest_ones_training(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words(world, tmp_path)) == 0
    check_lineage(tmp_path)
    output = capsys.readouterr().out
    generations = population.read(Folder.at(tmp_path / "swept"))
    for before, after in itertools.pairwise(generations):
        ranked = sorted(before, key=lambda member: member.score or 0)
        begun = [member for member in after if member.run not in {one.run for one in before}]
        assert [(member.follows, member.since) for member in begun] == [(ranked[0].run, before[0].epochs)]
    (line,) = (line for line in output.splitlines() if line.startswith("best"))
    trials = trials_of(tmp_path)
    assert (
        line.split()[1]
        == min((trial for trial in trials.values() if trial["state"] == "finished"), key=lambda trial: trial["value"])[
            "name"
        ]
    )
    head = (tmp_path / "swept" / "table.csv").read_text().splitlines()[0]
    assert head == f"grounding.optimizer.lr,{METRIC},begins with,epochs,state,minutes"

    # once more: nothing is trained again, and Ray Tune's state is not read
    begun = {name: len(attempts.begun(Folder.at(tmp_path / "swept" / "trials" / name))) for name in trials}
    table = (tmp_path / "swept" / "trials.json").read_text()
    for state in (tmp_path / "swept" / "tune").rglob("*.pkl"):
        state.chmod(0o666)
    assert main([*words(world, tmp_path), "--resume"]) == 0
    check_lineage(tmp_path)
    assert [{**trial, "seconds": 0} for trial in trials_of(tmp_path).values()] == [
        {**trial, "seconds": 0} for trial in json.loads(table)
    ]
    for name, number in begun.items():
        again = len(attempts.begun(Folder.at(tmp_path / "swept" / "trials" / name)))
        assert again <= number + 1  # a finished run looks at itself once more


def start(given: list[str], storage: Path) -> subprocess.Popen[str]:
    """Start a sweep in a process and a session of its own, with a cluster of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "groundray.sweep", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=storage,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        start_new_session=True,
    )


def kill_at(given: list[str], storage: Path, text: str) -> str:
    """Start a sweep and kill its driver with SIGKILL when its output has a text; returns the output until then."""
    output = ""
    with start(given, storage) as sweep:
        for line in sweep.stdout or ():
            output += line
            if text in line:
                os.kill(sweep.pid, signal.SIGKILL)
                break
        else:
            raise AssertionError(f"the sweep ended before {text!r}:\n{output}")
        sweep.wait()
    time.sleep(5)  # Ray's processes notice that their driver is gone, and end
    return output


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_population_that_is_killed_resumes_to_the_same_end(world: SmallWorld, tmp_path: Path) -> None:
    """Killed within a member's epoch, as a member takes up another's training, and in the last generation."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    given = words(world, tmp_path / "whole", "--max-concurrent=1")
    with start(given, tmp_path / "whole") as sweep:
        output = sweep.communicate(timeout=1200)[0]
    assert sweep.returncode == 0, output

    storage = tmp_path / "killed"
    given = words(world, storage, "--max-concurrent=1", "--resume")
    for text in ("trial-00001  starts", "-g1  starts", "epoch 3/3"):
        kill_at(given, storage, text)
    with start(given, storage) as sweep:
        output = sweep.communicate(timeout=1200)[0]
    assert sweep.returncode == 0, output
    check_lineage(storage)
    ended = {
        name: [
            (trial["values"], trial["value"], trial["follows"], trial["state"]) for trial in trials_of(place).values()
        ]
        for name, place in (("whole", tmp_path / "whole"), ("killed", storage))
    }
    assert ended["killed"] == ended["whole"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_grid_that_is_killed_resumes_and_trains_each_step_once(world: SmallWorld, tmp_path: Path) -> None:
    """Killed within a trial, and between one trial and the next."""
    settings = world.settings(f"--run.storage={tmp_path}", "--run.name=swept", "--tracking.enabled=false")
    space = ["--space=grounding.temperature=choice:0.05,0.1,1.0", "--metric=grounding/loss", "--early-stopping=none"]
    given = [*space, *settings, "--max-concurrent=1", "--resume"]
    for text in ("trial-00000  epoch 1/2", "trial-00000  finished"):
        kill_at(given, tmp_path, text)
    with start(given, tmp_path) as sweep:
        output = sweep.communicate(timeout=1200)[0]
    assert sweep.returncode == 0, output
    trials = trials_of(tmp_path)
    assert [trial["state"] for trial in trials.values()] == ["finished"] * 3
    assert sorted(trial["values"]["grounding.temperature"] for trial in trials.values()) == [0.05, 0.1, 1.0]
    folders = {folder.name for folder in (tmp_path / "swept" / "trials").iterdir() if not folder.name.startswith(".")}
    assert folders == set(trials)
    for name in trials:
        events = [event for event, _ in history.read(Folder.at(tmp_path / "swept" / "trials" / name), print)]
        assert [event.step for event in events if isinstance(event, StepDone)] == list(range(1, 2 * STEPS + 1))
