"""Processes that decode give the steps of the synchronous stream, bit by bit, and end with the process they serve."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SmallWorld
from test_stream import with_a_broken_image

from groundray import config
from groundray.data import decoding_processes
from groundray.data.decoding_processes import DecodingProcesses
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, stream
from groundray.model.pretrained import load_tokenizer
from groundray.stage.grounding import GroundingStage
from groundray.stage.stages import STAGES


@pytest.fixture(scope="module")
def decoding() -> Iterator[DecodingProcesses]:
    """Two processes, which start after the first step of the first stream."""
    processes = DecodingProcesses(2, worth_seconds=0)
    yield processes
    processes.close()
    assert not children()


def children() -> list[psutil.Process]:
    """Return the processes that decode for this one."""
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def source(world: SmallWorld, stage: str, *words: str) -> Source:
    settings = config.load("demo", world.settings("--data.window=24", *words))
    return STAGES[stage](settings, load_tokenizer(settings.model.language)).train


def assert_equal(steps: Iterator[Step], expected: Iterator[Step]) -> None:
    for found, step in zip(steps, expected, strict=True):
        assert (found.epoch, found.step, found.ends_epoch) == (step.epoch, step.step, step.ends_epoch)
        for (number, batch), (wanted, other) in zip(found.chunks, step.chunks, strict=True):
            assert (number, batch.ids) == (wanted, other.ids)
            assert batch.tensors.keys() == other.tensors.keys()
            for name, tensor in batch.tensors.items():
                assert tensor.dtype == other.tensors[name].dtype
                assert torch.equal(tensor, other.tensors[name]), name


@pytest.mark.parametrize("stage", ["visual", "language", "grounding", "relational"])
def test_steps_are_those_of_the_synchronous_stream(
    stage: str, world: SmallWorld, decoding: DecodingProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding_processes, "BLOCK_ROWS", 3)  # several blocks a step, the last one short
    train = source(world, stage)
    assert_equal(decoding.stream(train, Cursor(), 2), stream(train, Cursor(), 2))
    assert len(children()) == 2


def test_a_stream_resumes_at_the_cursor_and_ends_with_a_short_batch(
    world: SmallWorld, decoding: DecodingProcesses
) -> None:
    train = source(world, "grounding")
    val = replace(train, plan=replace(train.plan, drop_last=False, shuffle=False, batch_size=20))
    assert_equal(decoding.stream(val, Cursor(0, 2), 2), stream(val, Cursor(0, 2), 2))
    assert list(decoding.stream(train, Cursor(2, 0), 2)) == []


def test_an_undecodable_sample_has_the_message_of_the_synchronous_stream(
    world: SmallWorld, decoding: DecodingProcesses, tmp_path: Path
) -> None:
    settings = config.load("demo", world.settings("--data.window=24"))
    broken = with_a_broken_image(GroundingStage.open(settings, load_tokenizer(settings.model.language)), tmp_path)
    with pytest.raises(ValueError, match="cannot be decoded") as expected:
        list(stream(broken, Cursor(), 1))
    with pytest.raises(ValueError, match=r"sample '7' \(row 7\)") as caught:
        list(decoding.stream(broken, Cursor(), 1))
    assert str(caught.value) == str(expected.value)


def test_what_is_quickly_decoded_and_feature_maps_stay_in_this_process(world: SmallWorld) -> None:
    train = source(world, "grounding")
    with_maps = replace(train, features=train.dataset)  # the image column of the same shards
    vars(with_maps)["local_features"] = None  # as if they were in a store
    for worth, one in ((60.0, train), (0.0, with_maps)):
        before, processes = children(), DecodingProcesses(2, worth_seconds=worth)
        assert_equal(processes.stream(one, Cursor(), 2), stream(one, Cursor(), 2))
        assert children() == before


def test_work_of_killed_processes_is_done_here(world: SmallWorld) -> None:
    told: list[str] = []
    before = children()
    processes = DecodingProcesses(2, tell=told.append, worth_seconds=0)
    train = source(world, "grounding")
    steps = processes.stream(train, Cursor(), 6)
    found = [next(steps), next(steps)]
    for process in set(children()) - set(before):
        process.kill()
    found += steps
    assert_equal(iter(found), stream(train, Cursor(), 6))
    assert_equal(processes.stream(train, Cursor(), 1), stream(train, Cursor(), 1))
    assert [text.partition(",")[0] for text in told] == 2 * ["a decoding process was killed"]
    processes.close()
    assert children() == before


PARENT = """
import pathlib, psutil
from groundray.data.captions import CaptionSamples
from groundray.data.decoding_processes import DecodingProcesses
from groundray.data.image_inputs import CentreCrop
from groundray.data.plan import Cursor, Plan
from groundray.data.schema import Dataset
from groundray.data.stream import Source
from groundray.data.tokenization import WordPieceTokenizer

if __name__ == "__main__":
    world = pathlib.Path({world!r})
    dataset = Dataset.open(str(world / "shards/captions/train"), "captions")
    tokenizer = WordPieceTokenizer((world / "source/tokenizer/tokenizer.json").read_text(), 32)
    samples = CaptionSamples(tokenizer, CentreCrop(112, 112))
    source = Source(dataset, samples, Plan(tuple(dataset.group_sizes.tolist()), 8))
    processes = DecodingProcesses(2, worth_seconds=0)
    for number, step in enumerate(processes.stream(source, Cursor(), 10**6)):
        if number == 3:
            print(*(child.pid for child in psutil.Process().children()), flush=True)
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGTERM, False)]
)
def test_a_signal_leaves_no_process_behind(
    number: signal.Signals, whole_group: bool, world: SmallWorld, tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(world=str(world.source.parent)), encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    try:
        started = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(started) >= 2
        if whole_group:
            os.killpg(parent.pid, number)
        else:
            parent.send_signal(number)
        _, errors = parent.communicate(timeout=60)
        assert errors.count("Traceback") == (number == signal.SIGINT), errors
        _, left = psutil.wait_procs(started, timeout=30)
        assert not left
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
