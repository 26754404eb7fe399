"""The state of a stage in training: what a checkpoint holds, and how it is restored from one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import optim

from groundray.data.plan import Cursor
from groundray.data.stream import Step
from groundray.model.grounded import GroundedModel
from groundray.stage.protocol import Metrics, Stage
from groundray.training.checkpoint import Checkpoint, CheckpointStore
from groundray.training.recovery import Start
from groundray.training.weight_average import WeightAverage


@dataclass
class TrainState:
    """The state of a stage; replicated on every rank.

    Attributes:
        cursor: the next global batch; one past an epoch's last while its validation is due.
        done: steps of the stage so far.
        best: name and metrics of the best checkpoint so far; None before the first validation.
        skipped: steps left out because their loss or gradient was not finite.
        average: of the trained weights; None for a stage without (`optimizer.ema`).
    """

    stage: Stage
    model: GroundedModel
    optimizer: optim.Optimizer
    cursor: Cursor = field(default_factory=Cursor)
    done: int = 0
    best: tuple[str, Metrics] | None = None
    skipped: int = 0
    average: WeightAverage | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.stage.train.plan.steps

    @property
    def total_steps(self) -> int:
        return self.stage.settings.epochs * self.steps_per_epoch

    @property
    def validation_is_due(self) -> bool:
        """True when an epoch's steps are done but its validation is not."""
        return self.cursor.step == self.steps_per_epoch

    def restore(self, store: CheckpointStore, start: Start) -> None:
        """Load the checkpoint that the attempt resumes from, if it is one of this stage."""
        if start.stage != self.stage.name or start.checkpoint is None:
            return
        checkpoint = store.get(start.checkpoint)
        store.load(checkpoint, self.model, self.optimizer, self.average)
        self.cursor, self.done, self.skipped = checkpoint.cursor, checkpoint.done, checkpoint.skipped
        self.best = (checkpoint.best, checkpoint.metrics) if checkpoint.best else None

    def step_done(self, batch: Step) -> None:
        self.done += 1
        self.cursor = Cursor(batch.epoch, batch.step + 1)

    def epoch_done(self, scores: Metrics, store: CheckpointStore) -> bool:
        """Move to the next epoch; returns whether this one is the best so far.

        Args:
            scores: the validation metrics of the epoch.
            store: names the checkpoint that is written next, which holds the best weights if they are.
        """
        criterion = self.stage.best
        is_best = criterion.beats(scores[criterion.metric], self.best[1][criterion.metric] if self.best else None)
        self.cursor = Cursor(self.cursor.epoch + 1)
        if is_best:
            self.best = (store.name(self.stage.name, self.cursor), scores)
        return is_best

    def checkpoint(self, store: CheckpointStore) -> Checkpoint:
        """Returns the description of a checkpoint of this state."""
        best, metrics = self.best or (None, {})
        return Checkpoint(
            name=store.name(self.stage.name, self.cursor),
            stage=self.stage.name,
            cursor=self.cursor,
            done=self.done,
            best=best,
            metrics=metrics,
            skipped=self.skipped,
            saved_at=time.time(),
        )
