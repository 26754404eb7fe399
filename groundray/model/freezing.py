"""Freezing the parts of a model that a stage does not train. Frozen parts are in eval mode: their dropout is off."""

from __future__ import annotations

from typing import Any

from torch import nn

from groundray.config import TrainedLanguage, TrainedVisual
from groundray.model.grounded import GroundedModel


def freeze(model: GroundedModel, head: str, trains: TrainedVisual | TrainedLanguage | None = None) -> None:
    """Put a head and the named parts of the streams in train mode with gradients; freeze all else, in eval mode.

    Args:
        head: name of the stage whose head is trained.
        trains: parts of the streams that are trained; None for none.

    Raises:
        ValueError: `trains` asks for more language layers than the model has.
    """
    model.requires_grad_(False)
    model.eval()
    parts: list[nn.Module] = [model.heads[head]]
    if isinstance(trains, TrainedVisual):
        if trains.trunk:
            parts.append(model.visual.trunk)
        if trains.attention:
            parts += [model.visual.channel_dropout, model.visual.embedder, model.visual.attention]
    if isinstance(trains, TrainedLanguage):
        parts += _language_parts(model, trains)
    for part in parts:
        part.requires_grad_(True)
        part.train()
    if isinstance(trains, TrainedLanguage) and not trains.query_key:
        for layer in language_layers(model):
            layer.attention.self.query.requires_grad_(False)
            layer.attention.self.key.requires_grad_(False)


def set_dropout(model: GroundedModel, attention: float, channels: float = 0.0) -> None:
    """Set the dropout rates of the spatial attention and of the trunk's channels, 0 to 1."""
    model.visual.attention.dropout.p = attention
    model.visual.channel_dropout.p = channels


def set_language_dropout(model: GroundedModel, rate: float | None) -> None:
    """Set the rate of the language stream's hidden and attention dropout, 0 to 1.

    Args:
        rate: None for the rates of the stream's own configuration, which stays unchanged.
    """
    bert = model.language.bert
    weights = {id(layer.attention.self.dropout) for layer in language_layers(model)}
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            own = bert.config.attention_probs_dropout_prob if id(module) in weights else bert.config.hidden_dropout_prob
            module.p = own if rate is None else rate


def trainable_counts(model: GroundedModel) -> dict[str, int]:
    """Return the number of trained parameters of each part of the model; parts without any are left out."""
    parts = {
        "visual trunk": model.visual.trunk,
        "visual embedder": model.visual.embedder,
        "visual attention": model.visual.attention,
        "language stream": model.language,
        **{f"{name} head": head for name, head in model.heads.items()},
    }
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        for name, part in parts.items()
    }
    return {name: count for name, count in counts.items() if count}


def language_layers(model: GroundedModel) -> list[Any]:
    """Return the layers of the language stream, first to last."""
    return list(model.language.bert.encoder.layer)


def _language_parts(model: GroundedModel, trains: TrainedLanguage) -> list[nn.Module]:
    layers = language_layers(model)
    if trains.language_layers == "all":
        return [model.language.bert.embeddings, *layers]
    if trains.language_layers > len(layers):
        raise ValueError(f"trains.language_layers: expected at most {len(layers)}, got {trains.language_layers}")
    return layers[len(layers) - trains.language_layers :]
