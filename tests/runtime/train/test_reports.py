"""What is reported to Ray Train of a validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray.train

from groundray.runtime.train import ray_worker, reports
from groundray.runtime.train.reports import LastValidation, describe
from groundray.runtime.train.resources import DataCpuBudget
from groundray.training.events import EpochDone, Notice, StepDone


def validation(step: int, epoch: int = 0) -> EpochDone:
    return EpochDone("grounding", epoch, 2, step, True, {"loss": 1.5, "recall@10": 0.25})


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray Train has been given."""
    found: list[dict[str, Any]] = []

    def take(metrics: dict[str, Any], checkpoint_upload_mode: Any) -> None:
        assert checkpoint_upload_mode is ray.train.CheckpointUploadMode.ASYNC
        found.append(metrics)

    monkeypatch.setattr(ray.train, "report", take)
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_reports_each_validation_with_the_loss_of_its_last_step(
    taken: list[dict[str, Any]], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = SimpleNamespace(put=SimpleNamespace(remote=lambda events: events))
    worker = ray_worker.RayWorker(rank, 2, "cpu", sent, DataCpuBudget(1.0, 1.0), prefetch=1, report=reports.report)
    worker.emit(validation(5))  # a run that resumes where a validation was due has done no step
    for event in (
        StepDone("grounding", 0, 6, 18, {"loss": 3.0}),
        Notice("between"),
        StepDone("grounding", 0, 7, 18, {"loss": 2.0}),
        validation(7),
        validation(9, epoch=1),
    ):
        worker.emit(event)
    worker.emit(EpochDone("retrieval", 0, 1, 4, True, {"loss": 0.5}))  # the last step was of another stage
    shared = {"stage": "grounding", "loss": 1.5, "recall@10": 0.25}
    assert taken == [
        shared | {"epoch": 1, "step": 5},
        shared | {"epoch": 1, "step": 7, "train_loss": 2.0},
        shared | {"epoch": 2, "step": 9, "train_loss": 2.0},
        {"stage": "retrieval", "epoch": 1, "step": 4, "loss": 0.5},
    ]


class State:
    """In place of Ray Train's state of a run: keeps each detail that is sent, and whether it was waited for."""

    def __init__(self) -> None:
        self.run = SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: self.ended), status_detail=None)
        self.ended, self.sent = False, list[tuple[str, bool]]()
        self._state_manager = SimpleNamespace(_runs={"id": self.run}, _create_or_update_train_run=self._send)

    def _send(self, run: Any, block: bool) -> None:
        self.sent.append((run.status_detail, block))


def test_the_last_validation_stays_when_ray_clears_it_and_gives_way_to_an_error() -> None:
    state: Any = State()
    shown = LastValidation(state)
    shown.after_controller_start(SimpleNamespace(run_id="id"))
    shown.after_controller_state_update(None, None)
    assert state.sent == []  # no validation yet
    metrics = {"stage": "grounding", "epoch": 1, "step": 9, "train_loss": 2.0, "recall@10": 0.25}
    shown.after_report(SimpleNamespace(metrics=metrics), [metrics, metrics])
    said = "grounding, epoch 1, step 9: train_loss 2, recall@10 0.25"
    assert describe(metrics) == said
    assert state.sent == [(said, False)]

    state.run.status_detail = "Scheduling 2 workers"
    shown.after_controller_state_update(None, None)
    assert state.run.status_detail == "Scheduling 2 workers"
    state.run.status_detail, state.ended = None, True
    shown.after_controller_state_update(None, None)
    assert state.sent == [(said, False), (said, True)]
