"""The training loop. It knows no stage: what is special about one lies in `stage/`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils import _pytree as trees

from groundray import config
from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.stream import CachedBatches, Step
from groundray.distributed import barrier, sum_over_ranks
from groundray.model.grounded import GroundedModel
from groundray.rng import hash64, hash_name
from groundray.stage.protocol import Metrics, Stage
from groundray.training.checkpoint import CheckpointStore
from groundray.training.checkpointer import Keeper
from groundray.training.events import StageStarted
from groundray.training.recovery import Start
from groundray.training.timing import StepTimer
from groundray.training.worker import Worker


def train_stage(
    stage: Stage, model: GroundedModel, worker: Worker, store: CheckpointStore, start: Start, run: Settings
) -> Metrics:
    """The metrics of a stage's best epoch, whose weights are left in the model. Goes on where the attempt starts."""
    settings = stage.settings
    stage.prepare(model)
    optimizer = make_optimizer(model, settings.optimizer)
    held_out = CachedBatches(lambda: worker.batches(stage.val, Cursor(), epochs=1))
    timer = StepTimer(worker.device, worker.world_size, settings.precision)
    keeper = Keeper(stage, model, optimizer, worker, store, run)
    keeper.go_on(start)
    worker.emit(StageStarted(stage.name, keeper.done, settings.epochs * keeper.steps, settings.epochs))

    def end_epoch() -> None:
        keeper.epoch_done(validate(stage, model, keeper.watched(held_out)))
        timer.restart()

    if keeper.validation_is_due:
        end_epoch()
    for batch in timer.timed_batches(worker.batches(stage.train, keeper.cursor, settings.epochs)):
        learning_rate = set_learning_rate(optimizer, settings.optimizer, batch.epoch, keeper.done)
        with timer.step():
            metrics = update(stage, model, optimizer, batch, run.run.seed, run.scaling.accumulate, timer)
        if not math.isfinite(metrics["loss"] + metrics["gradient_norm"]):
            keeper.not_finite(batch, metrics)
        keeper.step_done(batch, metrics | {"learning_rate": learning_rate} | timer.step_metrics(settings.batch_size))
        if batch.ends_epoch:
            end_epoch()

    chosen = choose(stage, model, held_out, keeper)
    keeper.finish(chosen)
    return chosen


def update(
    stage: Stage,
    model: GroundedModel,
    optimizer: optim.Optimizer,
    batch: Step,
    seed: int,
    accumulate: bool,
    timer: StepTimer,
) -> Metrics:
    """The loss of a global batch and the norm of its gradient, after the model has learned from it, if both are
    finite."""
    loss, metrics = learn(stage, model, batch, seed, accumulate, timer)

    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in trained:
        if parameter.grad is None:  # every rank sums the same tensors, touched by its own chunks or not
            parameter.grad = torch.zeros_like(parameter)
    sum_over_ranks([parameter.grad for parameter in trained])
    with timer.span("optimizer"):
        norm = nn.utils.get_total_norm(parameter.grad for parameter in trained)
        metrics |= {"loss": loss.item(), "gradient_norm": norm.item()}
        if math.isfinite(metrics["loss"] + metrics["gradient_norm"]):
            if stage.settings.clip_norm:
                nn.utils.clip_grads_with_norm_(trained, stage.settings.clip_norm, norm)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return metrics


def learn(
    stage: Stage, model: GroundedModel, batch: Step, seed: int, accumulate: bool, timer: StepTimer
) -> tuple[Tensor, Metrics]:
    """The loss of a global batch, its gradients left in the parameters.

    The gradient of an embedding needs the whole loss, but the graph between parameters and embeddings falls apart into
    chunks, and their gradients are added up chunk by chunk: as ranks add up theirs. To `accumulate` is to encode a
    chunk a second time when its turn comes, with the same dropout, so that one chunk's graph is held at a time (Gao et
    al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").
    """
    chunks = range(len(batch.chunks))
    with timer.span("forward"):
        with torch.set_grad_enabled(not accumulate):
            encoded = [encode_chunk(stage, model, batch, place, seed) for place in chunks]
        leaves = [trees.tree_map_only(Tensor, _leaf, one) for one in encoded]
        loss, metrics = stage.loss(leaves)
    with timer.span("backward"):
        loss.backward()
        for place in chunks:
            one = encode_chunk(stage, model, batch, place, seed) if accumulate else encoded[place]
            pairs = [
                (tensor, leaf.grad)
                for tensor, leaf in zip(trees.tree_leaves(one), trees.tree_leaves(leaves[place]), strict=True)
                if isinstance(tensor, Tensor) and tensor.requires_grad and leaf.grad is not None
            ]
            if pairs:
                tensors, gradients = zip(*pairs, strict=True)
                torch.autograd.backward(tensors, gradients)
    return loss, metrics


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


def encode_chunk(stage: Stage, model: GroundedModel, batch: Step, place: int, seed: int) -> Any:
    """The embeddings of a chunk of a step. Its dropout follows from where it is in the run, whoever encodes it."""
    chunk, samples = batch.chunks[place]
    torch.manual_seed(int(hash64(seed, hash_name(stage.name), batch.epoch, batch.step, chunk)) >> 1)
    return encode(stage, model, samples)


def encode(stage: Stage, model: GroundedModel, samples: Any) -> Any:
    """The embeddings of a chunk, in the stage's precision; the loss is never under autocast."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=stage.settings.precision == "bf16"):
        return stage.encode(model, samples)


@torch.no_grad()
def validate(stage: Stage, model: GroundedModel, steps: Iterable[Step], blind: bool = False) -> Metrics:
    """The metrics of the whole validation set, with everything in eval mode meanwhile; `blind` withholds the images."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    if blind:
        steps = (step.without_images(model.visual.blank) for step in steps)
    scores = stage.validate(lambda samples: encode(stage, model, samples), steps)
    for module in training:
        module.training = True
    return scores


def make_optimizer(model: GroundedModel, settings: config.Optimizer) -> optim.Optimizer:
    """The optimiser of the parameters that are trained, the language stream's with a learning rate of its own."""
    language = {id(parameter) for parameter in model.language.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in language], "initial_lr": settings.lr},
        {"params": [p for p in trained if id(p) in language], "initial_lr": settings.language_lr or settings.lr},
    ]
    if settings.kind == "sgd":
        return optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return optim.Adam(groups, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)


def set_learning_rate(optimizer: optim.Optimizer, settings: config.Optimizer, epoch: int, step: int) -> float:
    """The learning rate of a step (counted from the stage's first): it rises over the first `warmup` steps, and halves
    every `halve_every` epochs, as does each group's own."""
    factor = min(1.0, (step + 1) / (settings.warmup + 1)) * 0.5 ** (epoch // settings.halve_every)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return settings.lr * factor


def choose(stage: Stage, model: GroundedModel, held_out: Iterable[Step], keeper: Keeper) -> Metrics:
    """The metrics of the stage's best epoch, whose weights are then in every rank's model; without images too."""
    keeper.wait()
    barrier()  # rank 0 has written what the others read now
    if keeper.best is None:
        raise RuntimeError(f"stage {stage.name} ended without a validation")
    name, chosen = keeper.best
    keeper.store.load(keeper.store.named(name), model)
    if keeper.skipped:
        chosen = chosen | {"skipped_steps": float(keeper.skipped)}
    if stage.sees_images:
        blind = validate(stage, model, keeper.watched(held_out), blind=True)
        chosen = chosen | {f"without_image/{metric}": value for metric, value in blind.items()}
    return chosen
