"""Which parts of a model a stage trains. What is frozen runs in eval mode: its dropout is off."""

from __future__ import annotations

from typing import Any

from torch import nn

from groundray.config import Trained
from groundray.model.grounded import GroundedModel


def freeze(model: GroundedModel, trains: Trained) -> None:
    """Let exactly the parts that `trains` names learn, in train mode, and everything else be frozen, in eval mode.

    Raises:
        ValueError: more language layers than there are.
    """
    model.requires_grad_(False)
    model.eval()
    bert = model.language.bert
    layers: list[Any] = list(bert.encoder.layer)
    wanted = len(layers) if trains.language_layers == "all" else trains.language_layers
    if wanted > len(layers):
        raise ValueError(f"trains.language_layers: expected at most {len(layers)}, got {wanted}")

    parts: list[nn.Module] = [model.visual_head, model.language_head, *layers[len(layers) - wanted :]]
    if trains.trunk:
        parts.append(model.visual.trunk)
    if trains.attention:
        parts += [model.visual.channel_dropout, model.visual.embedder, model.visual.attention]
    if trains.language_layers == "all":
        parts.append(bert.embeddings)
    for part in parts:
        part.requires_grad_(True)
        part.train()
    if not trains.query_key:
        for layer in layers:
            layer.attention.self.query.requires_grad_(False)
            layer.attention.self.key.requires_grad_(False)


def set_dropout(model: GroundedModel, attention: float, channels: float = 0.0) -> None:
    """Set the dropout of the spatial attention, and of the trunk's channels on their way to it."""
    model.visual.attention.dropout.p = attention
    model.visual.channel_dropout.p = channels


def trainable_counts(model: GroundedModel) -> dict[str, int]:
    """Trained parameters of each part of the model."""
    parts = {
        "visual trunk": model.visual.trunk,
        "visual embedder": model.visual.embedder,
        "visual attention": model.visual.attention,
        "visual head": model.visual_head,
        "language stream": model.language,
        "language head": model.language_head,
    }
    return {
        name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        for name, part in parts.items()
    }
