"""The input benchmark: all streams bring the same samples."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import own_time
import pytest
import torch
from conftest import SmallWorld
from PIL import Image

from groundray.benchmarks import input_pipeline as streams
from groundray.data.plan import Cursor
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.data.stream import Step, stream


def ids(steps: list[Step]) -> list[str]:
    return [sample for step in steps for _, batch in step.chunks for sample in batch.ids]


def test_drawn_photos_are_photos(tmp_path: Path) -> None:
    dataset = streams.write_photos(tmp_path, 3)
    images = read_group(dataset, 0, ["image"])["image"].to_pylist()
    assert [Image.open(io.BytesIO(image)).size for image in images] == [(640, 480)] * 3
    assert all(90_000 < len(image) < 170_000 for image in images)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # a DataLoader's fork
def test_all_streams_bring_the_same_samples_in_the_same_order(world: SmallWorld) -> None:
    source = streams.training_source(Dataset.open(str(world.shards / "captions" / "train"), "captions"), 8)
    expected = list(stream(source, Cursor(), 2))
    for begin in streams.streams(source, epochs=2, cpus=1).values():
        found = list(begin())
        assert ids(found) == ids(expected)
        (_, ours), (_, theirs) = found[0].chunks[0], expected[0].chunks[0]
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.tokens, theirs.tokens)


def test_a_run_is_timed_after_a_few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, own, every = itertools.count(), itertools.count(step=8), itertools.count(step=16)
    own_time.give(monkeypatch, streams, perf_counter=lambda: float(next(clock)), process_time=lambda: float(next(own)))
    monkeypatch.setattr(streams, "cpu_seconds", lambda: {1: float(next(every))})
    # a second a step, after the first at second 1
    assert streams.timed(lambda: iter([None] * 9), steps=8, batch_size=10)() == {  # type: ignore[list-item]
        "first_batch": 1.0,
        "samples_per_second": 10.0,
        "cpu_per_sample": 0.2,
        "trainer_cpu_per_sample": 0.1,
    }
