"""The action on a step whose loss or gradient is not finite (`run.on_nan`): stop the run, or skip the step."""

from __future__ import annotations

from typing import Literal

from groundray.data.stream import Step
from groundray.stage.protocol import Metrics
from groundray.storage.folder import Folder
from groundray.training import history
from groundray.training.events import Notice
from groundray.training.layout import NOT_FINITE
from groundray.training.worker import Worker


class NotFinite(ArithmeticError):
    """A loss or a gradient is not finite."""


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
