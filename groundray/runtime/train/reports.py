"""Reports validations to Ray Train, and shows the last one of a run in Ray Train's state."""

from __future__ import annotations

from typing import Any

import ray.train
from ray.train import CheckpointUploadMode

from groundray.runtime import compat
from groundray.training.events import EpochDone, StepDone


def report(event: EpochDone, step: StepDone | None) -> None:
    """Report a validation to Ray Train. Every rank of a group must report each, and waits here until all have come.

    Checkpoints are not reported: Ray (2.60) would read its record of them when the run resumes, and refuse one of
    another version of Ray. Its controller takes a report of each rank when it polls them. A rank whose last report it
    has not taken does not wait for it: a thread does.

    Args:
        step: the last step that this rank has done, if any.
    """
    trained = {"train_loss": step.metrics["loss"]} if step and step.stage == event.stage else {}
    where = {"stage": event.stage, "epoch": event.epoch + 1, "step": event.step}
    ray.train.report({**where, **trained, **event.metrics}, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)


class LastValidation(compat.ControllerCallback, compat.ReportCallback):
    """Shows the last validation of a run as the detail of its status in Ray Train's state, which Ray's dashboard
    gives at `/api/train/v2/runs/v1`. Ray (2.60) keeps no reported metrics there.

    Must come after `states` among the callbacks.

    Args:
        states: keeps the state; Ray has one if `RAY_TRAIN_ENABLE_STATE_TRACKING` is 1 in the driver's environment.
    """

    def __init__(self, states: compat.StateManagerCallback):
        self._states, self._detail = states, ""

    def after_controller_start(self, train_run_context: Any) -> None:
        self._run_id = train_run_context.run_id

    def after_report(self, training_report: Any, metrics: Any) -> None:
        self._detail = describe(training_report.metrics)
        compat.set_status_detail(self._states, self._run_id, self._detail, replace=True)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if self._detail:  # Ray has cleared it, or replaced it with what is said of the new state, such as an error
            compat.set_status_detail(self._states, self._run_id, self._detail, replace=False)


def describe(metrics: dict[str, Any]) -> str:
    """Describe a reported validation in one line."""
    metrics = dict(metrics)
    where = f"{metrics.pop('stage')}, epoch {metrics.pop('epoch')}, step {metrics.pop('step')}"
    return f"{where}: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}"
