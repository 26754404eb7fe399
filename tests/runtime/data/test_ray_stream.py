"""Streams on Ray: the steps of a stream in one process, whatever the segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from conftest import SmallWorld
from tiers import thorough

from groundray import config
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, Window, stream, windows
from groundray.model.pretrained import load_tokenizer
from groundray.runtime import compat
from groundray.runtime.data import ray_stream
from groundray.runtime.data.scheduling import Scheduling
from groundray.runtime.data.stream_tasks import DecodeRows, ReadWindows, SentSource
from groundray.runtime.train.resources import DataCpuBudget
from groundray.stage.language import LanguageStage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
BUDGET = DataCpuBudget(1.0, 1.0)


@pytest.fixture(scope="module")
def source(world: SmallWorld) -> Source:
    settings = config.load("demo", world.settings("--data.window=80", stages="language"))
    return LanguageStage.open(settings, load_tokenizer(settings.model.language)).train


def described(steps: Iterator[Step]) -> list[Any]:
    return [
        (step.epoch, step.step, step.ends_epoch, [(chunk, batch.ids) for chunk, batch in step.chunks]) for step in steps
    ]


@pytest.mark.parametrize("ahead", [thorough(0), 10**6])
@pytest.mark.parametrize(("rank", "of", "batch_size"), [thorough(0, 1, 40), thorough(1, 2, 40), (1, 2, 43)])
def test_segments_give_the_steps_of_one_process(
    source: Source, monkeypatch: pytest.MonkeyPatch, ahead: int, rank: int, of: int, batch_size: int
) -> None:
    source = replace(source, plan=replace(source.plan, batch_size=batch_size))
    monkeypatch.setattr(ray_stream, "SEGMENT_WINDOWS", 2)
    monkeypatch.setattr(ray_stream, "AHEAD_SAMPLES", ahead)
    cursor, epochs = Cursor(0, 1), 3
    assert len(list(windows(source.plan, cursor, epochs))) > 4
    steps = described(ray_stream.stream(source, cursor, epochs, rank, of, BUDGET, prefetch=1))
    assert steps == described(stream(source, cursor, epochs, rank, of))


def test_the_first_step_needs_one_segment_of_any_number_of_epochs(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Window] = []

    def counted(*arguments: Any) -> Iterator[Window]:
        for window in windows(*arguments):
            taken.append(window)
            yield window

    monkeypatch.setattr(ray_stream, "windows", counted)
    monkeypatch.setattr(ray_stream, "SEGMENT_WINDOWS", 3)
    steps = ray_stream.stream(source, Cursor(), 1_000_000, 0, 1, BUDGET, prefetch=1)
    first = next(steps)
    assert (first.epoch, first.step, len(taken)) == (0, 0, 3)
    steps.close()


def test_a_stream_at_its_end_is_empty(source: Source) -> None:
    assert list(ray_stream.stream(source, Cursor(2, 0), 2, 0, 1, BUDGET, prefetch=1)) == []


@pytest.mark.thorough
def test_a_dataset_has_the_cpus_of_its_rank(source: Source) -> None:
    """Ray Data's own share is a whole number: 0 CPUs of two for each of three datasets."""
    budget = DataCpuBudget(1.5, 1.5)
    sent = SentSource(ray.put(source))
    segments = [
        ray_stream._Segment.start(sent, source.plan.owned(0, 1), list(windows(source.plan, Cursor(), 1)), budget, 1)
        for _ in range(3)
    ]
    for segment in segments:
        assert segment.next_arrays() is not None
        assert compat.cpu_limit(segment.dataset) == ray_stream.task_sizes(budget).cpus
        segment.batches.close()


def test_steps_are_decoded_before_the_last_window_is_read(
    source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Counted(ReadWindows):
        def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
            for item in items.to_pylist():
                (tmp_path / f"{item['epoch']}-{item['first']}").touch()
            yield from super().__call__(items)

    monkeypatch.setattr(ray_stream, "ReadWindows", Counted)
    steps = ray_stream.stream(source, Cursor(), 40, 0, 1, DataCpuBudget(1.5, 1.5), prefetch=1)
    next(steps)
    assert len(list(tmp_path.iterdir())) < len(list(windows(source.plan, Cursor(), 40)))
    steps.close()


def test_tasks_load_none_of_the_libraries_that_train(source: Source) -> None:
    """Each would take seconds and most of the memory of every process that reads and decodes."""
    sent, chunks = SentSource(ray.put(source)), source.plan.owned(0, 1)
    window = pa.table({"epoch": [0], "first": [0], "last": [1]})

    @ray.remote(num_cpus=0, runtime_env={"env_vars": {"OF_THIS_TASK": "alone"}})  # a new process
    def task(reads: ReadWindows, decodes: DecodeRows, _: type[Scheduling]) -> tuple[list[int], set[str]]:
        import sys

        import ray.data  # noqa: F401  as in Ray Data's own tasks

        rows = [len(decodes(table)["id"]) for table in reads(window)]
        return rows, {name.partition(".")[0] for name in sys.modules}

    arguments: Any = ReadWindows(sent, chunks), DecodeRows(sent), Scheduling.with_cpus(1.0)
    remote: Any = task
    rows, loaded = ray.get(remote.remote(*arguments))
    assert rows == [source.plan.batch_size]
    assert not loaded & {"torch", "torchvision", "transformers", "mlflow", "scipy", "sklearn"}
    assert "tokenizers" in loaded
