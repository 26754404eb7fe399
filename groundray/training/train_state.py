"""The state of a stage in training: what a checkpoint holds, and how it is restored from one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import optim

from groundray.data.plan import Cursor
from groundray.data.stream import Step
from groundray.model.grounded import GroundedModel
from groundray.stage.protocol import Metrics, Stage, criterion
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
        validated: True if the weights are validated as they are now.
        stale: consecutive validations without a new best.
    """

    stage: Stage
    model: GroundedModel
    optimizer: optim.Optimizer
    cursor: Cursor = field(default_factory=Cursor)
    done: int = 0
    best: tuple[str, Metrics] | None = None
    skipped: int = 0
    average: WeightAverage | None = None
    validated: bool = False
    stale: int = 0

    @property
    def steps_per_epoch(self) -> int:
        return self.stage.train.plan.steps

    @property
    def total_steps(self) -> int:
        return self.stage.settings.epochs * self.steps_per_epoch

    @property
    def validation_is_due(self) -> bool:
        """True when the steps before a validation are done but the validation is not."""
        every, step = self.stage.settings.validate_every_steps, self.cursor.step
        ends = step == self.steps_per_epoch or bool(every and step and step % every == 0)
        return ends and not self.validated

    @property
    def validations(self) -> int:
        """Number of validations up to the cursor, whether the last one is done or due."""
        steps = self.steps_per_epoch
        every = self.stage.settings.validate_every_steps or steps
        of_epoch = -(-steps // every)
        return self.cursor.epoch * of_epoch + (of_epoch if self.cursor.step == steps else self.cursor.step // every)

    @property
    def stops_early(self) -> bool:
        """True when the stage has gone so many validations without a new best that it ends."""
        patience = self.stage.settings.patience
        return patience is not None and self.stale >= patience and self.cursor.epoch < self.stage.settings.epochs

    @property
    def has_ended(self) -> bool:
        """True when no step of the stage is left."""
        return self.stops_early or self.cursor.epoch == self.stage.settings.epochs

    @property
    def ending(self) -> str:
        """Why a stage that has ended did so, in a few words."""
        if not self.stops_early:
            return f"all {self.stage.settings.epochs} epochs done"
        return f"stopped early: no better {criterion(self.stage).metric} for {self.stale} validations"

    def choice(self, best: Checkpoint) -> dict[str, Any]:
        """Returns how the weights of a stage that has ended were chosen.

        The criterion (`by`), `epoch` (from 1) and `step` of the best checkpoint, the stage's `last_step`, and why it
        `ended`.
        """
        epoch = -(-best.done // self.steps_per_epoch)
        by = str(criterion(self.stage))
        return {"by": by, "epoch": epoch, "step": best.done, "last_step": self.done, "ended": self.ending}

    def restore(self, store: CheckpointStore, start: Start) -> None:
        """Load the checkpoint that the attempt resumes from, if it is one of this stage."""
        if start.stage != self.stage.name or start.checkpoint is None:
            return
        checkpoint = store.get(start.checkpoint)
        store.load(checkpoint, self.model, self.optimizer, self.average)
        self.cursor, self.done, self.skipped = checkpoint.cursor, checkpoint.done, checkpoint.skipped
        self.validated, self.stale = checkpoint.validated, checkpoint.stale
        self.best = (checkpoint.best, checkpoint.metrics) if checkpoint.best else None

    def step_done(self, batch: Step) -> None:
        self.done += 1
        self.cursor = Cursor(batch.epoch, batch.step + 1)
        self.validated = False

    def validation_done(self, scores: Metrics, store: CheckpointStore) -> bool:
        """Record a validation, and move to the next epoch at the end of one; returns whether it is the best so far.

        Args:
            scores: its metrics.
            store: names the checkpoint that is written next, which holds the best weights if they are.
        """
        metric, better = criterion(self.stage).metric, criterion(self.stage).beats
        is_best = better(scores[metric], self.best[1][metric] if self.best else None)
        if self.cursor.step == self.steps_per_epoch:
            self.cursor = Cursor(self.cursor.epoch + 1)
        if is_best:
            self.best = (store.name(self.stage.name, self.cursor), scores)
        self.validated, self.stale = True, 0 if is_best else self.stale + 1
        return is_best

    def checkpoint(self, store: CheckpointStore, keep_every: int | None = None) -> Checkpoint:
        """Returns the description of a checkpoint of this state.

        Args:
            keep_every: as `checkpoints.keep_every`.
        """
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
            validated=self.validated,
            stale=self.stale,
            kept=self.validated and bool(keep_every) and self.validations % keep_every == 0,
        )
