"""The training loop, the same for every stage; what differs between stages is in `stage/`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils import _pytree as trees

from groundray.arithmetic import autocast
from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.stream import CachedBatches, Step
from groundray.distributed import barrier
from groundray.model.freezing import hold_rows
from groundray.model.grounded import GroundedModel
from groundray.model.lora import add_adapters, remove_adapters
from groundray.rng import hash64, hash_name
from groundray.stage.protocol import Metrics, Scalars, Stage, criterion
from groundray.training.checkpoint import CheckpointStore
from groundray.training.checkpointer import Checkpointer
from groundray.training.events import StageStarted
from groundray.training.gradient_sums import GradientSums
from groundray.training.history import gather_sample_ids
from groundray.training.non_finite import NotFinite, step_if_finite
from groundray.training.optimizer import make_optimizer, set_learning_rates
from groundray.training.profiling import profiled
from groundray.training.recovery import Start
from groundray.training.taken_step import Readback
from groundray.training.timing import StepTimer
from groundray.training.train_state import TrainState
from groundray.training.weight_average import WeightAverage, averaged
from groundray.training.worker import Worker


def train_stage(
    stage: Stage, model: GroundedModel, worker: Worker, store: CheckpointStore, start: Start, settings: Settings
) -> Metrics:
    """Train a stage and return the metrics of its best validation, whose weights are left in the model.

    Resumes where the attempt starts.
    """
    stage_settings = stage.settings
    stage.prepare(model)
    add_adapters(model, stage.name, stage_settings.trained, settings.run.seed)
    optimizer = make_optimizer(model, stage_settings.optimizer)
    hold_rows(optimizer, model.language.frozen_rows)
    held_out = CachedBatches(lambda: worker.batches(stage.val, Cursor(), epochs=1))
    timer = StepTimer(worker.device, worker.world_size, stage_settings.precision, settings.scaling.peak_tflops)
    decay = stage_settings.optimizer.ema
    state = TrainState(stage, model, optimizer, average=WeightAverage(model, decay) if decay else None)
    state.restore(store, start)
    checkpointer = Checkpointer(state, worker, store, start, settings)
    worker.emit(StageStarted(stage.name, state.done, state.total_steps, stage_settings.epochs))

    def validate_if_due() -> None:
        if state.validation_is_due:
            with averaged(state.average):
                scores = validate(stage, model, checkpointer.stoppable(held_out))
            checkpointer.validation_done(scores)
            timer.restart()

    validate_if_due()
    steps = until_end(worker.batches(stage.train, state.cursor, stage_settings.epochs), state)
    if worker.rank == 0:
        steps = profiled(steps, store.attempt.run, stage.name, worker.device, settings.run.profile)
    for batch in timer.timed_batches(steps):
        learning_rates = set_learning_rates(optimizer, stage_settings, state.done, state.steps_per_epoch)
        with timer.step():
            scalars = update(stage, model, optimizer, batch, settings.run.seed, settings.scaling.accumulate, timer)
            if state.average:
                state.average.update(state.done + 1)
            samples = gather_sample_ids(batch) if settings.run.log_samples else None
        checkpointer.step_done(batch, scalars, learning_rates, timer.end_step(stage_settings.batch_size), samples)
        validate_if_due()

    best = load_best(state, store, checkpointer, held_out)
    checkpointer.stage_done(best)
    return best


def until_end(steps: Iterator[Step], state: TrainState) -> Iterator[Step]:
    """Yields the steps until the stage has ended; of one that had ended before, none is read."""
    while not state.has_ended and (step := next(steps, None)):
        yield step


def update(
    stage: Stage,
    model: GroundedModel,
    optimizer: optim.Optimizer,
    batch: Step,
    seed: int,
    accumulate: bool,
    timer: StepTimer,
) -> Readback:
    """Do an optimizer step on a global batch, unless its loss or gradient is not finite; returns its scalars.

    They include `loss` and `gradient_norm`, the norm over all ranks before clipping.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sums = GradientSums(trained)
    loss, others = compute_gradients(stage, model, batch, seed, accumulate, timer, sums)
    sums.finish()
    with timer.span("optimizer"):
        norm = nn.utils.get_total_norm(parameter.grad for parameter in trained)
        scalars = Readback({**others, "loss": loss, "gradient_norm": norm})
        if stage.settings.clip_norm:
            nn.utils.clip_grads_with_norm_(trained, stage.settings.clip_norm, norm)
        step_if_finite(optimizer, loss, norm, scalars.read)
        optimizer.zero_grad(set_to_none=True)
    return scalars


def compute_gradients(
    stage: Stage,
    model: GroundedModel,
    batch: Step,
    seed: int,
    accumulate: bool,
    timer: StepTimer,
    sums: GradientSums,
) -> tuple[Tensor, Scalars]:
    """Compute the loss of a global batch and leave its gradients, of this rank's chunks, in the parameters.

    The gradient of an embedding needs the whole loss, but the graph between parameters and embeddings falls apart into
    chunks. Their gradients are added chunk by chunk, as they are added over ranks. With `accumulate`, a chunk is
    encoded a second time, with the same dropout, when its gradient is computed, so that one chunk's graph is held at a
    time (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").

    The last chunk completes the gradients, and starts their sums over ranks.
    """
    indices = range(len(batch.chunks))
    with timer.span("forward"):
        with torch.set_grad_enabled(not accumulate):
            encoded = [encode_chunk(stage, model, batch, index, seed) for index in indices]
        leaves = [trees.tree_map_only(Tensor, _leaf, embeddings) for embeddings in encoded]
        loss, metrics = stage.loss(leaves)
    with timer.span("backward"):
        loss.backward()
        for index in indices:
            embeddings = encode_chunk(stage, model, batch, index, seed) if accumulate else encoded[index]
            pairs = [
                (tensor, leaf.grad)
                for tensor, leaf in zip(trees.tree_leaves(embeddings), trees.tree_leaves(leaves[index]), strict=True)
                if isinstance(tensor, Tensor) and tensor.requires_grad and leaf.grad is not None
            ]
            if pairs:
                tensors, gradients = zip(*pairs, strict=True)
                with sums.started_by_backward() if index == indices[-1] else contextlib.nullcontext():
                    torch.autograd.backward(tensors, gradients)
    return loss, metrics


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def encode_chunk(stage: Stage, model: GroundedModel, batch: Step, index: int, seed: int) -> Any:
    """Encode a chunk of a step. Dropout depends on the chunk's position in the run, not on the rank."""
    chunk, samples = batch.chunks[index]
    torch.manual_seed(int(hash64(seed, hash_name(stage.name), batch.epoch, batch.step, chunk)) >> 1)
    return encode(stage, model, samples)


def encode(stage: Stage, model: GroundedModel, samples: Any) -> Any:
    """Encode samples in the stage's precision; the loss is never under autocast."""
    with autocast(stage.settings.precision, next(model.parameters()).device):
        return stage.encode(model, samples)


@torch.no_grad()
def validate(stage: Stage, model: GroundedModel, steps: Iterable[Step], blind: bool = False) -> Metrics:
    """Compute the metrics of the validation set in eval mode; with `blind`, images are replaced by a blank one."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    if blind:
        steps = (step.without_images(model.blank) for step in steps)
    scores = stage.validate(lambda samples: encode(stage, model, samples), steps)
    for module in training:
        module.training = True
    return scores


def load_best(
    state: TrainState, store: CheckpointStore, checkpointer: Checkpointer, held_out: Iterable[Step]
) -> Metrics:
    """Load the weights of the stage's best validation on every rank, and return its metrics.

    For a stage that sees images, they include `without_image/...`, measured with blank images.

    Raises:
        NotFinite: no validation of the stage was finite.
    """
    checkpointer.wait()
    barrier()  # rank 0 has written what the other ranks read now
    if state.best is None:
        raise NotFinite(
            f"{state.stage.name} ended without a finite validation of {criterion(state.stage).metric}, so no epoch is "
            "its best: start another run (--run.name) with a lower learning rate or clip_norm"
        )
    name, metrics = state.best
    remove_adapters(state.model)
    store.load(store.get(name), state.model)
    if state.skipped:
        metrics = metrics | {"skipped_steps": float(state.skipped)}
    if state.stage.sees_images:
        blind = validate(state.stage, state.model, checkpointer.stoppable(held_out), blind=True)
        metrics = metrics | {f"without_image/{metric}": value for metric, value in blind.items()}
    return metrics
