"""Decides when a stage's checkpoint is written, writes it beside training, and reports what the stage has done."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NoReturn

from groundray.config import Settings
from groundray.data.stream import Step
from groundray.stage.protocol import Metrics, criterion
from groundray.training import history
from groundray.training.checkpoint import CheckpointStore, take_snapshot
from groundray.training.endings import Stopped
from groundray.training.events import EpochDone, Notice, StageDone, StepDone
from groundray.training.non_finite import handle_non_finite
from groundray.training.recovery import Start
from groundray.training.taken_step import Readback, TakenStep
from groundray.training.timing import StepTimes
from groundray.training.train_state import TrainState
from groundray.training.worker import Worker

HEARTBEAT_SECONDS = 2.0


class Checkpointer:
    """Writes the checkpoints of a stage from rank 0, on a thread: after each validation, between them at the
    intervals of the `checkpoints` settings, and at once if the worker is asked to stop.

    Every rank has one, since every rank judges each step; only rank 0 writes.

    On a GPU a step is judged (was its loss finite?) and reported when the next one is enqueued, on every rank at the
    same point. Before rank 0 writes a checkpoint, it waits for the step before it, so that no checkpoint holds a step
    that was not judged.
    """

    def __init__(
        self, state: TrainState, worker: Worker, store: CheckpointStore, start: Start, settings: Settings
    ) -> None:
        self.state, self.worker, self.store = state, worker, store
        self._settings = settings
        is_recovery = start.number > 1 and start.stage == state.stage.name
        self._recovers_from = start if is_recovery else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="groundray-checkpoint")
        self._writing: Future[None] | None = None
        self._heartbeat: Future[None] | None = None
        self._defers = worker.device.startswith("cuda")
        self._unjudged: TakenStep | None = None
        self._reported = state.done  # steps, by events
        self._history: list[str] = []  # lines since the last checkpoint
        self._saved_at = self._heartbeat_at = time.monotonic()
        self._saved_steps = state.done

    def step_done(
        self,
        batch: Step,
        scalars: Readback,
        learning_rates: Metrics,
        times: StepTimes,
        samples: list[list[str]] | None = None,
    ) -> None:
        """Report a step and write a checkpoint if one is due; on a GPU, report the step before it.

        Args:
            learning_rates: as `TakenStep.learning_rates`, like `samples`.

        Raises:
            NotFinite: its loss or gradient is not finite, and `run.on_nan` is `stop`.
            Stopped: the worker was asked to stop; a checkpoint is written.
        """
        self.state.step_done(batch)
        before, step = self._unjudged, TakenStep(batch, self.state.done, scalars, learning_rates, times, samples)
        self._unjudged = step
        if before:
            self._judge(before)
        if self.state.validation_is_due or not self._defers:
            self._judge(step)
            self._unjudged = None
        if self.worker.rank == 0:
            self._stop_or_save(step)

    def _judge(self, step: TakenStep) -> None:
        """Count a step as skipped if it is not finite, and report it; called for each step on every rank."""
        if not step.is_finite:
            self.state.skipped += 1
            stage, run = self.state.stage.name, self.store.attempt.run
            handle_non_finite(stage, step.batch, step.metrics, self.worker, run, self._settings.run.on_nan)
        self._report_step(step)

    def _report_step(self, step: TakenStep) -> None:
        if step.number <= self._reported:
            return
        self._reported = step.number
        state = self.state
        skipped = {"skipped_steps": float(state.skipped)} if state.skipped else {}
        metrics = step.metrics | skipped | self.worker.step_timed(state.stage.name, step.times.seconds)
        self._report(
            StepDone(state.stage.name, step.batch.epoch, step.number, state.total_steps, metrics), step.samples
        )
        self._report_recovery()

    def _stop_or_save(self, step: TakenStep) -> None:
        """Write a checkpoint if the worker is asked to stop, or if one is due.

        If the step was not judged, and is not finite, all ranks have to judge it: after the next step.

        Raises:
            Stopped: the worker was asked to stop.
        """
        reason = self.worker.stop_reason()
        is_due = not self.state.validation_is_due and self._is_due()
        if not (reason or is_due) or (self._unjudged and not step.is_finite):
            return
        self._report_step(step)
        if reason:
            self._stop(reason)
        self._save()

    def validation_done(self, scores: Metrics) -> None:
        """Report a validation, and write its checkpoint.

        Raises:
            Stopped: as `step_done`.
        """
        state, epoch = self.state, self.state.cursor.epoch
        is_best = state.validation_done(scores, self.store)
        epochs, metric, ends_epoch = state.stage.settings.epochs, criterion(state.stage).metric, not state.cursor.step
        self._report(
            EpochDone(
                state.stage.name,
                epoch,
                epochs,
                state.done,
                is_best,
                scores,
                ends_epoch=ends_epoch,
                stale=state.stale,
            )
        )
        if self.worker.rank == 0 and not math.isfinite(scores[metric]):
            when = f"epoch {epoch + 1}" if ends_epoch else f"step {state.done}"
            text = f"{state.stage.name}, {when}: {metric} of the validation is {scores[metric]:g}"
            self.worker.emit(Notice(f"{text}, which is never the best"))
        self._save()
        self._stop_if_requested()

    def stage_done(self, metrics: Metrics) -> None:
        """Record that the stage is finished, so that it is not trained again, and report it."""
        state = self.state
        assert state.best  # `load_best` has loaded it
        best = self.store.get(state.best[0])
        choice = state.choice(best)
        event = StageDone(
            state.stage.name,
            state.done,
            metrics,
            best_epoch=choice["epoch"] - 1,
            best_step=best.done,
            ended=state.ending,
        )
        if self.worker.rank == 0:
            self.store.mark_finished(state.stage.name, metrics, best.name, (history.to_line(event),), choice)
        self._pool.shutdown()
        self._report_recovery()
        self.worker.emit(event)

    def stoppable(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Yields the steps of a validation, and stops between them if the worker is asked to.

        Raises:
            Stopped: as `step_done`.
        """
        for step in steps:
            self.worker.heartbeat()
            self._stop_if_requested()
            yield step

    def wait(self) -> None:
        """Wait until everything is written."""
        for future in (self._writing, self._heartbeat):
            while future and not future.done():
                self.worker.heartbeat()  # a slow storage is no hanging worker
                futures.wait([future], timeout=1)
            if future:
                future.result()

    def _report(self, event: StepDone | EpochDone, samples: list[list[str]] | None = None) -> None:
        self.worker.emit(event)
        if self.worker.rank == 0:
            self._history.append(history.to_line(event, samples))
            now = time.monotonic()
            if now - self._heartbeat_at > HEARTBEAT_SECONDS and (not self._heartbeat or self._heartbeat.done()):
                self._heartbeat_at = now
                attempt, state = self.store.attempt, self.state
                self._heartbeat = self._pool.submit(attempt.heartbeat, state.stage.name, event.step)

    def _report_recovery(self) -> None:
        """Report, once, that a later attempt has done its first step, or has ended a stage that lacked none."""
        if self._recovers_from:
            self.worker.emit(self._recovers_from.recovered(time.time()))
            self._recovers_from = None

    def _stop_if_requested(self) -> None:
        """Write a checkpoint and raise Stopped on rank 0 if the worker is asked to stop."""
        if self.worker.rank == 0 and (reason := self.worker.stop_reason()):
            self._stop(reason)

    def _stop(self, reason: str) -> NoReturn:
        if self._saved_steps != self.state.done or self._history:
            self._save()
        self.wait()
        self.store.attempt.heartbeat(self.state.stage.name, self.state.done, ended=reason)
        raise Stopped(reason)

    def _is_due(self) -> bool:
        interval = self._settings.checkpoints
        if interval.every_steps and self.state.done - self._saved_steps >= interval.every_steps:
            return True
        return time.monotonic() - self._saved_at > interval.every_minutes * 60

    def _save(self) -> None:
        """Copy the state and write it on the thread; at most one checkpoint is in flight."""
        if self.worker.rank > 0:
            return
        self.wait()
        state = self.state
        checkpoint = state.checkpoint(self.store, self._settings.checkpoints.keep_every)
        snapshot = take_snapshot(checkpoint, state.model, state.optimizer, tuple(self._history), state.average)
        self._writing = self._pool.submit(self.store.save, snapshot)
        self._history.clear()
        self._saved_at, self._saved_steps = time.monotonic(), state.done
