"""A run keeps the windows with which it began: the order of its samples depends on them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import SmallWorld

from groundray import config
from groundray.config import SettingsError
from groundray.data.window import WINDOW
from groundray.training import preflight

pytestmark = pytest.mark.thorough  # whole runs, for what they record


def checked(world: SmallWorld, storage: Path, *words: str) -> preflight.CheckedRun:
    stages = "grounding,language"
    return preflight.check(config.load("demo", world.settings(f"--run.storage={storage}", *words, stages=stages)))


def test_the_window_of_a_run_is_that_of_its_start(world: SmallWorld, tmp_path: Path) -> None:
    began = checked(world, tmp_path, "--data.window=24")
    preflight.claim(began)
    resumed = checked(world, tmp_path)
    assert [stage.train.plan.window for stage in resumed.stages] == [24, 24]
    assert resumed.settings_hash == began.settings_hash
    preflight.claim(resumed)
    with pytest.raises(SettingsError, match=r"language\.window: 24 stored, 80 now"):
        preflight.claim(checked(world, tmp_path, "--language.window=80"))


def test_the_default_window_is_recorded(world: SmallWorld, tmp_path: Path) -> None:
    run = checked(world, tmp_path, "--language.window=80")
    assert {stage.name: stage.train.plan.window for stage in run.stages} == {"grounding": WINDOW, "language": 80}
    preflight.claim(run)
    recorded = preflight.identity.recorded(run.folder)
    assert recorded
    assert (recorded.window("grounding"), recorded.window("language")) == (WINDOW, 80)
    preflight.claim(checked(world, tmp_path))


def test_a_preview_says_the_window_and_what_an_epoch_reads(world: SmallWorld, tmp_path: Path) -> None:
    settings = config.load("demo", world.settings(f"--run.storage={tmp_path}", "--data.window=24"))
    (stage,) = preflight.preview(settings).stages
    (line,) = [line for line in stage.data if line.startswith("window")]
    assert re.fullmatch(
        r"window: 24 samples, .* kB a worker; an epoch reads 1\.\d\d times its data, which is small", line
    )
