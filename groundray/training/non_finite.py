"""The action on a step whose loss or gradient is not finite (`run.on_nan`): stop the run, or skip the step.

Such a step changes neither weights nor the optimizer's state, whatever follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, optim

from groundray.data.stream import Step
from groundray.stage.protocol import Metrics
from groundray.storage.folder import Folder
from groundray.training import history
from groundray.training.events import Notice
from groundray.training.layout import NOT_FINITE
from groundray.training.worker import Worker


class NotFinite(ArithmeticError):
    """A loss or a gradient is not finite."""


def is_finite(metrics: Metrics) -> bool:
    """True if the loss and the norm of the gradient are finite."""
    return math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])


def step_if_finite(optimizer: optim.Optimizer, loss: Tensor, norm: Tensor, read: Callable[[], Metrics]) -> None:
    """Do an optimizer step, unless the loss or the gradient's norm is not finite.

    A fused optimizer decides on the device, without a wait of the host: `found_inf` leaves parameters, moments and the
    count of steps as they are. Its first step makes its state, so the host decides.

    Args:
        read: returns the metrics of the step.
    """
    if optimizer.defaults.get("fused") and optimizer.state:
        fused: Any = optimizer  # the attributes by which torch.amp.GradScaler tells fused optimizers
        fused.grad_scale = None
        fused.found_inf = (~torch.stack([loss.detach(), norm]).isfinite().all()).float()
        optimizer.step()
        del fused.grad_scale, fused.found_inf
    elif is_finite(read()):
        optimizer.step()


def handle_non_finite(
    stage: str, batch: Step, metrics: Metrics, worker: Worker, run: Folder, on_nan: Literal["stop", "skip"]
) -> None:
    """Write the samples of a step that was not learned from to the run's `not_finite/`, and report them.

    Called on every rank, since the samples are gathered.

    Raises:
        NotFinite: `on_nan` is `stop`; the message names the file.
    """
    name = f"{stage}-{batch.epoch:05d}-{batch.step:06d}.json"
    samples = history.gather_sample_ids(batch)
    folder = run / NOT_FINITE
    values = {key: metrics[key] for key in ("loss", "gradient_norm")}
    where = f"{stage}, epoch {batch.epoch + 1}, step {batch.step + 1}"
    details = f"loss {values['loss']:g}, gradient norm {values['gradient_norm']:g}; its samples are in {folder}/{name}"
    if worker.rank == 0:
        texts = {key: repr(value) for key, value in values.items()}  # JSON has no NaN
        folder.make().write_json(name, {"stage": stage, **texts, "samples": samples})
    if on_nan == "stop":
        raise NotFinite(f"{where} is not finite: {details}; set a lower learning rate or clip_norm, or run.on_nan skip")
    if worker.rank == 0:
        worker.emit(Notice(f"{where} is not finite and skipped: {details}"))
