"""Keeps what a stage has learned while it trains: when a checkpoint is written, and what is told of each step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from torch import optim

from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.stream import Step
from groundray.distributed import gather_strings
from groundray.model.grounded import GroundedModel
from groundray.stage.protocol import Metrics, Stage
from groundray.training import history
from groundray.training.checkpoint import Checkpoint, CheckpointStore, snapshot
from groundray.training.events import EpochDone, Notice, StageDone, StepDone
from groundray.training.layout import NOT_FINITE
from groundray.training.recovery import Start
from groundray.training.worker import Stopped, Worker

BEAT_SECONDS = 2.0


class NotFinite(ArithmeticError):
    """A loss or a gradient that is not finite."""


@dataclass
class Keeper:
    """Writes a stage's checkpoints from rank 0, on a thread beside training: at the end of each epoch, in the middle of
    one every so often, and at once when the worker has notice that it will end.

    Every rank has one, and knows the same of the stage; only rank 0 writes.

    Attributes:
        cursor: the next global batch.
        done: steps of the stage so far.
        best: name and metrics of the best checkpoint so far.
        skipped: steps that were left out, as their loss was not finite.
    """

    stage: Stage
    model: GroundedModel
    optimizer: optim.Optimizer
    worker: Worker
    store: CheckpointStore
    settings: Settings
    cursor: Cursor = field(default_factory=Cursor)
    done: int = 0
    best: tuple[str, Metrics] | None = None
    skipped: int = 0
    recovers: Start | None = None

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="groundray-checkpoint")
        self._writing: Future[None] | None = None
        self._beating: Future[None] | None = None
        self._lines: list[str] = []
        self._saved_at = self._beat_at = time.monotonic()
        self._saved_steps = 0

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.stage.train.plan.steps

    @property
    def validation_is_due(self) -> bool:
        """Whether an epoch's steps are done and its validation is not."""
        return self.cursor.step == self.steps

    def go_on(self, start: Start) -> None:
        """Fill model and optimiser with the checkpoint that the attempt goes on from, if the stage is that one's."""
        if start.number > 1 and start.stage == self.stage.name:
            self.recovers = start
        if start.stage != self.stage.name or start.checkpoint is None:
            return
        found = self.store.named(start.checkpoint)
        self.store.load(found, self.model, self.optimizer)
        self.cursor, self.skipped = found.cursor, found.skipped
        self.done = self._saved_steps = found.done
        self.best = (found.best, found.metrics) if found.best else None

    def step_done(self, batch: Step, metrics: Metrics) -> None:
        """Tell of a step, and write a checkpoint if it is time.

        Raises:
            Stopped: the worker had notice; a checkpoint is written.
        """
        self.done += 1
        self.cursor = Cursor(batch.epoch, batch.step + 1)
        total = self.stage.settings.epochs * self.steps
        if self.skipped:
            metrics = metrics | {"skipped_steps": float(self.skipped)}
        event = StepDone(self.stage.name, batch.epoch, self.done, total, metrics)
        samples = _everyones(batch) if self.settings.run.log_samples else None
        self._tell(event, samples)
        self._recovered()
        self._raise_if_stop_requested()
        if not batch.ends_epoch and self._is_due():
            self._save()

    def epoch_done(self, scores: Metrics) -> None:
        """Tell of an epoch's validation, and write its checkpoint."""
        epoch, measure = self.cursor.epoch, self.stage.best
        better = measure.beats(scores[measure.metric], self.best[1][measure.metric] if self.best else None)
        self.cursor = Cursor(epoch + 1)
        if better:
            self.best = (self.store.name(self.stage.name, self.cursor), scores)
        self._tell(EpochDone(self.stage.name, epoch, self.stage.settings.epochs, self.done, better, scores))
        self._save()

    def watched(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps of a validation, which ends in between where the worker has notice."""
        for step in steps:
            self.worker.heartbeat()
            self._raise_if_stop_requested()
            yield step

    def not_finite(self, batch: Step, metrics: Metrics) -> None:
        """Deal with a step whose loss or gradient is not finite, and from which nothing was learned.

        Raises:
            NotFinite: unless `run.on_nan` is skip; its samples are in a file that the message names.
        """
        self.skipped += 1
        name = f"{self.stage.name}-{batch.epoch:05d}-{batch.step:06d}.json"
        samples = _everyones(batch)
        folder = self.store.attempt.run / NOT_FINITE
        values = {key: metrics[key] for key in ("loss", "gradient_norm")}
        where = f"{self.stage.name}, epoch {batch.epoch + 1}, step {batch.step + 1}"
        told = f"loss {values['loss']:g}, gradient norm {values['gradient_norm']:g}; its samples are in {folder}/{name}"
        if self.worker.rank == 0:
            text = {key: repr(value) for key, value in values.items()}  # JSON knows no NaN
            folder.make().write_json(name, {"stage": self.stage.name, **text, "samples": samples})
        if self.settings.run.on_nan == "stop":
            raise NotFinite(
                f"{where} is not finite: {told}; set a lower learning rate or clip_norm, or run.on_nan skip"
            )
        if self.worker.rank == 0:
            self.worker.emit(Notice(f"{where} is not finite and left out: {told}"))

    def wait(self) -> None:
        """Wait until everything is written."""
        for future in (self._writing, self._beating):
            while future and not future.done():
                self.worker.heartbeat()  # it is the storage that takes its time
                futures.wait([future], timeout=1)
            if future:
                future.result()

    def finish(self, metrics: Metrics) -> None:
        """Tell that the stage is over, and note it, so that it is not run again."""
        event = StageDone(self.stage.name, self.done, metrics)
        if self.worker.rank == 0 and self.best:
            self.store.finish(self.stage.name, metrics, self.best[0], (history.line(event),))
        self._pool.shutdown()
        self._recovered()
        self.worker.emit(event)

    def _recovered(self) -> None:
        """Tell, once, that a later attempt has done its first step, or ended a stage that lacked no step."""
        if self.recovers:
            self.worker.emit(self.recovers.recovered(time.time()))
            self.recovers = None

    def _tell(self, event: StepDone | EpochDone, samples: list[list[str]] | None = None) -> None:
        self.worker.emit(event)
        if self.worker.rank == 0:
            self._lines.append(history.line(event, samples))
            now = time.monotonic()
            if now - self._beat_at > BEAT_SECONDS and (not self._beating or self._beating.done()):
                self._beat_at = now
                self._beating = self._pool.submit(self.store.attempt.heartbeat, self.stage.name, self.done)

    def _is_due(self) -> bool:
        wanted = self.settings.checkpoints
        if wanted.every_steps and self.done - self._saved_steps >= wanted.every_steps:
            return True
        return time.monotonic() - self._saved_at > wanted.every_minutes * 60

    def _save(self) -> None:
        """Copy the state, and have it written; at most one checkpoint is on its way."""
        if self.worker.rank > 0:
            return
        self.wait()
        name, metrics = self.best or (None, {})
        checkpoint = Checkpoint(
            name=self.store.name(self.stage.name, self.cursor),
            stage=self.stage.name,
            cursor=self.cursor,
            done=self.done,
            best=name,
            metrics=metrics,
            skipped=self.skipped,
            saved_at=time.time(),
        )
        copies = snapshot(checkpoint, self.model, self.optimizer, tuple(self._lines))
        self._writing = self._pool.submit(self.store.save, copies)
        self._lines.clear()
        self._saved_at, self._saved_steps = time.monotonic(), self.done

    def _raise_if_stop_requested(self) -> None:
        """Write a checkpoint and end where the worker has notice."""
        if self.worker.rank == 0 and (notice := self.worker.stop_reason()):
            if self._saved_steps != self.done or self._lines:
                self._save()
            self.wait()
            self.store.attempt.heartbeat(self.stage.name, self.done, ended=notice)
            raise Stopped(notice)


def _everyones(batch: Step) -> list[list[str]]:
    """The ids of a global batch's samples, chunk by chunk, from all ranks."""
    own = json.dumps([samples.ids for _, samples in batch.chunks])
    return [ids for text in gather_strings(own) for ids in json.loads(text)]
