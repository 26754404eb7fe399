"""The mailbox between workers and the driver, and what a worker reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SmallWorld

from groundray import config
from groundray.data.plan import Cursor
from groundray.data.stream import stream
from groundray.runtime.train import mailbox as mailboxes
from groundray.runtime.train import ray_worker
from groundray.runtime.train.resources import DataCpuBudget
from groundray.training import preflight, progression
from groundray.training.events import StepDone
from groundray.training.trunk_features import with_features
from groundray.training.worker import InProcess


def test_a_step_that_is_done_again_is_no_progress() -> None:
    mailbox = mailboxes.Mailbox.__ray_metadata__.modified_class()
    for step in (*range(1, 51), *range(31, 51)):
        mailbox.put([StepDone("grounding", 0, step, 100, {})])
    assert mailbox.steps_done() == 50
    mailbox.put([StepDone("language", 0, 3, 100, {})])
    assert mailbox.steps_done() == 53


def test_the_end_of_a_run_outweighs_what_else_is_wanted() -> None:
    mailbox = mailboxes.Mailbox.__ray_metadata__.modified_class()
    mailbox.request_stop("resized")
    assert mailbox.put([]) == "resized"
    assert mailbox.clear_request() == ""
    mailbox.request_stop("stopped")
    mailbox.request_stop("resized")
    assert mailbox.clear_request() == "stopped"
    assert mailbox.put([]) == "stopped"


def test_local_features_do_not_come_through_ray_data(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = world.settings("--grounding.trains.trunk=false", "--data.window=24", f"--run.storage={tmp_path}")
    settings = config.load("demo", words)
    (stage,) = preflight.check(settings).stages
    trunk = progression.initial_model(settings)[0].visual.trunk
    source = with_features(stage, settings, trunk, InProcess(lambda _: None)).train
    assert source.local_features
    monkeypatch.setattr(ray_worker, "stream", None)  # of Ray Data
    for rank in range(2):
        worker = ray_worker.RayWorker(rank, 2, "cpu", None, DataCpuBudget(2, 2), prefetch=1)
        found, expected = worker.batches(source, Cursor(0, 4), 2), stream(source, Cursor(0, 4), 2, rank, 2)
        for step, other in zip(found, expected, strict=True):
            assert (step.epoch, step.step, step.ends_epoch) == (other.epoch, other.step, other.ends_epoch)
            for (chunk, batch), (number, twin) in zip(step.chunks, other.chunks, strict=True):
                assert (chunk, batch.ids) == (number, twin.ids)
                assert torch.equal(batch.images, twin.images)
                assert torch.equal(batch.tokens, twin.tokens)
