"""One training step of every stage of a run, without Ray, for tests of what a step computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from groundray.arithmetic import using
from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.stream import Step, stream
from groundray.model.grounded import GroundedModel
from groundray.stage.protocol import Stage
from groundray.training import preflight, progression
from groundray.training.loop import encode


class Outcome(NamedTuple):
    """A stage's encoding of its chunks, its loss, and the gradient of all that it trains."""

    encoded: list[Tensor]
    loss: Tensor
    gradient: Tensor


def stages_of(settings: Settings, device: str = "cpu") -> Iterator[tuple[Stage, GroundedModel, Step]]:
    """Yield each stage, the model that it trains, and its first global batch, on a device.

    The model is the same object for all stages. Its weights, when a stage comes, are as the settings' seed draws them
    if nothing has trained it.
    """
    model, heads = progression.initial_model(settings)
    model.to(device)
    for stage in preflight.check(settings).stages:
        progression.attach_heads(stage, model, heads, settings)
        stage.prepare(model)
        yield stage, model, next(stream(stage.train, Cursor(), 1)).to(device)


def first_steps(settings: Settings, device: str = "cpu") -> dict[str, Outcome]:
    """Return the first step of each stage by name, on a device, without dropout and without an update."""
    found = {}
    for stage, model, batch in stages_of(settings, device):
        model.eval()
        with using(stage.settings.precision, device):
            encoded = [encode(stage, model, samples) for _, samples in batch.chunks]
            loss, _ = stage.loss(encoded)
            loss.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        floating = [x.detach() for x in trees.tree_leaves(encoded) if isinstance(x, Tensor) and x.requires_grad]
        found[stage.name] = Outcome(floating, loss.detach(), torch.cat(gradients))
        model.zero_grad(set_to_none=True)
    return found


def distance(found: Any, truth: Any) -> float:
    """Return the length of the difference of two tensors, as a fraction of the second's; infinite for NaN."""
    found, truth = (x.detach().cpu().double() for x in (found, truth))
    length = ((found - truth).norm() / truth.norm()).item()
    return length if length == length else float("inf")
