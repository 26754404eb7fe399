"""The first batch of a stream comes after the same time for any number of windows."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import pytest
from conftest import SmallWorld

from groundray import config
from groundray.data.plan import Cursor
from groundray.data.stream import Source, windows
from groundray.model.pretrained import load_tokenizer
from groundray.runtime.data import ray_stream
from groundray.runtime.train.resources import DataCpuBudget
from groundray.stage.language import LanguageStage

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def first_batch_seconds(source: Source, count: int) -> float:
    """Return the seconds to the first batch of a stream of so many windows."""
    epochs = count // len(list(windows(source.plan, Cursor(), 1)))
    started = time.perf_counter()
    steps = ray_stream.stream(source, Cursor(), epochs, 0, 1, DataCpuBudget(1.0, 1.0), prefetch=1)
    next(steps)
    seconds = time.perf_counter() - started
    steps.close()
    return seconds


def test_the_first_batch_of_100_000_windows_is_as_early_as_that_of_100(world: SmallWorld) -> None:
    settings = config.load("demo", world.settings("--data.window=40", stages="language"))
    source = LanguageStage.open(settings, load_tokenizer(settings.model.language)).train
    source = replace(source, plan=replace(source.plan, batch_size=40, window=40))
    first_batch_seconds(source, 100)  # starts the processes of tasks
    rounds = [(first_batch_seconds(source, 100_000), first_batch_seconds(source, 100)) for _ in range(3)]
    many, few = (median(seconds) for seconds in zip(*rounds, strict=True))
    assert many < 1.5 * few, (many, few)
