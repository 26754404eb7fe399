"""The optimizer of a stage: groups of parameters, and the learning rate of each at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn, optim

from groundray import config
from groundray.model.grounded import GroundedModel
from groundray.model.layer_order import layers_above_language, layers_above_trunk
from groundray.stage.protocol import Metrics


def make_optimizer(model: GroundedModel, settings: config.Optimizer) -> optim.Optimizer:
    """Return the optimizer of the trained parameters.

    On a GPU it is fused: one launch for all parameters of a group.
    """
    groups: Any = parameter_groups(model, settings)
    fused = next(model.parameters()).is_cuda or None  # None: as torch chooses
    if settings.kind == "sgd":
        return optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
    kind = optim.AdamW if settings.kind == "adamw" else optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, fused=fused)


def parameter_groups(model: GroundedModel, settings: config.Optimizer) -> list[dict[str, Any]]:
    """Return torch's groups of the trained parameters: those of a part with the same learning rate and weight decay.

    Each has the name of its `part` and its `initial_lr`, before the schedule. Parameters keep the model's order, those
    of the language stream last: checkpoints number them so. Decoupled decay cuts each group in two, layer-wise decay
    that of the language stream, or of the trunk, into one for each layer.

    Raises:
        ValueError: the trunk's rates decay, and its layers have no order.
    """
    rates = _rates(settings)
    decays = {"language": settings.layer_decay, "trunk": settings.trunk_layer_decay}
    above = layers_above_language(model) | (layers_above_trunk(model) if settings.trunk_layer_decay < 1 else {})
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}
    for part, parameter in _trained(model):
        rate = rates[part] * decays.get(part, 1.0) ** above.get(id(parameter), 0)
        decay = settings.weight_decay if _decays(parameter, settings.kind) else 0.0
        group = {"params": [], "part": part, "initial_lr": rate, "weight_decay": decay}
        groups.setdefault((part, rate, decay), group)["params"].append(parameter)
    return list(groups.values())


def set_learning_rates(optimizer: optim.Optimizer, stage: config.Stage, step: int, steps_per_epoch: int) -> Metrics:
    """Set the learning rate of each group for a step, and return those of the parts: `learning_rate`, and
    `learning_rate/PART` of trained parts with another.

    Args:
        step: counted from the stage's first, which is 0.
    """
    factor = schedule_factor(stage, step, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    rates, trained = _rates(stage.optimizer), {group["part"] for group in optimizer.param_groups}
    own = {f"learning_rate/{part}": rate * factor for part, rate in rates.items() if part in trained}
    common = stage.optimizer.lr * factor
    return {"learning_rate": common, **{name: rate for name, rate in own.items() if rate != common}}


def schedule_factor(stage: config.Stage, step: int, steps_per_epoch: int) -> float:
    """Return the factor of all learning rates at a step, in [0, 1].

    It rises linearly over the first `warmup` steps. What follows is a function of the step and of the stage's number of
    steps alone, so that a run resumes anywhere.

    Args:
        step: counted from the stage's first, which is 0.
    """
    settings = stage.optimizer
    warmed = min(1.0, (step + 1) / (settings.warmup + 1))
    left = stage.epochs * steps_per_epoch - settings.warmup
    progress = max(0, step - settings.warmup) / max(1, left)
    final = settings.final_fraction
    match settings.schedule:
        case "halve":
            return warmed * 0.5 ** ((step // steps_per_epoch + settings.first_epoch) // settings.halve_every)
        case "cosine":
            return warmed * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
        case "linear":
            return warmed * (1 - (1 - final) * progress)
        case "step":
            return warmed * settings.factor ** sum(step >= epoch * steps_per_epoch for epoch in settings.milestones)
        case "constant":
            return warmed


def _rates(settings: config.Optimizer) -> dict[str, float]:
    """Return the learning rate of each part of the model, before the schedule."""
    own = {"trunk": settings.trunk_lr, "head": settings.head_lr, "language": settings.language_lr}
    return {"visual": settings.lr, **{part: rate or settings.lr for part, rate in own.items()}}


def _trained(model: GroundedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield each trained parameter with its part: trunk, visual (embedder and attention), head or language."""
    parts = {"trunk": model.visual.trunk, "visual": model.visual, "head": model.heads, "language": model.language}
    seen: set[int] = set()
    for part, module in parts.items():
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield part, parameter


def _decays(parameter: nn.Parameter, kind: str) -> bool:
    """Return whether a parameter has weight decay: a scalar never, under AdamW a matrix or more only."""
    return parameter.ndim >= (2 if kind == "adamw" else 1)
