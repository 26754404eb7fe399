"""Runs in one process."""

from __future__ import annotations

import joblib
import pytest
from conftest import SmallWorld

from groundray import config
from groundray.training.in_process import decoding_processes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.processes=3", "--scaling.threads=1"], 3),
        (["--data.processes=0"], 0),
        (["--scaling.threads=4"], 4),
        (["--scaling.threads=1"], 0),  # as a sweep's trial of one CPU
        (["--scaling.threads=1", "--scaling.use_gpu=true"], 1),
        (["--scaling.threads=null", "--scaling.use_gpu=true"], joblib.cpu_count()),
    ],
)
def test_decoding_processes_follow_from_the_cpus(words: list[str], expected: int, world: SmallWorld) -> None:
    assert decoding_processes(config.load("demo", world.settings(*words))) == expected
