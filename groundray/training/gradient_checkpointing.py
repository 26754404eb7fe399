"""Gradient checkpointing (`scaling.gradient_checkpointing`): activations are computed again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from groundray.model.freezing import language_layers
from groundray.model.grounded import GroundedModel


def checkpoint_gradients(model: GroundedModel) -> None:
    """Make the spatial attention and each layer of the language stream, where they train, keep only their inputs.

    The second forward pass has the dropout masks of the first (Chen et al. 2016).
    """
    for module in (model.visual.attention, *language_layers(model)):
        _recompute(module)


def _recompute(module: nn.Module) -> None:
    forward = module.forward

    def recomputing(*args: Any, **named: Any) -> Any:
        if module.training and torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **named)
        return forward(*args, **named)

    module.forward = recomputing
