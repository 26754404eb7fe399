"""Freezing the parts of a model that a stage does not train. Frozen parts are in eval mode: their dropout is off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from groundray.config import TrainedLanguage, TrainedVisual
from groundray.model import encoder_layout
from groundray.model.grounded import GroundedModel
from groundray.model.language_stream import LanguageStream


def freeze(model: GroundedModel, head: str, trains: TrainedVisual | TrainedLanguage | None = None) -> None:
    """Put a head and the named parts of the streams in train mode with gradients; freeze all else, in eval mode.

    Args:
        head: name of the stage whose head is trained.
        trains: parts of the streams that are trained; None for none.

    Raises:
        ValueError: `trains` asks for more language layers than the model has, or for a part that cannot be found.
    """
    release_rows(model)
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
        _freeze_query_key(model.language)


def release_rows(model: GroundedModel) -> None:
    """Let the frozen rows of trained parameters be trained, or frozen with the rest of their parameters."""
    for held in model.language.frozen_rows:
        held.release()
    model.language.frozen_rows = []


class FrozenRows:
    """Rows of a trained parameter that stay as they are, to the bit: they get no gradient and no weight decay."""

    def __init__(self, rows: encoder_layout.Rows):
        self.parameter = rows.parameter
        self._rows = rows.selected.nonzero().squeeze(1)
        self._hook = self.parameter.register_hook(self._without_gradient)

    @property
    def count(self) -> int:
        """Number of frozen numbers."""
        return self.values().numel()

    def values(self) -> Tensor:
        """Return a copy of the rows."""
        return self.parameter.detach().index_select(0, self._rows.to(self.parameter.device))

    @torch.no_grad()
    def put_back(self, values: Tensor) -> None:
        """Set the rows."""
        self.parameter.index_copy_(0, self._rows.to(self.parameter.device), values)

    def release(self) -> None:
        """Let the rows be trained."""
        self._hook.remove()

    def _without_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, self._rows.to(gradient.device), 0.0)


def hold_rows(optimizer: optim.Optimizer, frozen: Sequence[FrozenRows]) -> None:
    """Make an optimizer leave the frozen rows of its parameters as they are, whatever its decay and momentum."""
    kept: list[Tensor] = []

    def before(*_: Any) -> None:
        kept[:] = [rows.values() for rows in frozen]

    def after(*_: Any) -> None:
        for rows, values in zip(frozen, kept, strict=True):
            rows.put_back(values)

    if frozen:
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)


def set_dropout(model: GroundedModel, attention: float, channels: float = 0.0) -> None:
    """Set the dropout rates of the spatial attention and of the trunk's channels, 0 to 1."""
    model.visual.attention.dropout.p = attention
    model.visual.channel_dropout.p = channels


def set_language_dropout(model: GroundedModel, rate: float | None) -> None:
    """Set the rate of the language stream's hidden and attention dropout, 0 to 1.

    Args:
        rate: None for the rates of the stream's own configuration, which stays unchanged.
    """
    own = model.language.dropout_rates
    for one in encoder_layout.dropouts(model.language.encoder):
        if (place := (one.name, one.attribute)) in own:
            setattr(one.module, one.attribute, own[place] if rate is None else rate)


def trainable_counts(model: GroundedModel) -> dict[str, int]:
    """Return the number of trained parameters of each part of the model; parts without any are left out."""
    parts = {
        "visual trunk": model.visual.trunk,
        "visual embedder": model.visual.embedder,
        "visual attention": model.visual.attention,
        "language stream": model.language,
        **{f"{name} head": head for name, head in model.heads.items()},
    }
    frozen = {"language stream": sum(rows.count for rows in model.language.frozen_rows if rows.parameter.requires_grad)}
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad) - frozen.get(name, 0)
        for name, part in parts.items()
    }
    return {name: count for name, count in counts.items() if count}


def language_layers(model: GroundedModel) -> list[nn.Module]:
    """Return the layers of the language stream, first to last."""
    return encoder_layout.layers(model.language.encoder)


def _language_parts(model: GroundedModel, trains: TrainedLanguage) -> list[nn.Module]:
    encoder = model.language.encoder
    if trains.language_layers == "all":
        return encoder_layout.used(encoder)
    return encoder_layout.top(encoder, trains.language_layers)


def _freeze_query_key(language: LanguageStream) -> None:
    """Freeze the query and key projections of the trained layers."""
    for layer in encoder_layout.layers(language.encoder):
        if any(parameter.requires_grad for parameter in layer.parameters()):
            found = encoder_layout.query_key(layer, language.encoder.config.num_attention_heads)
            for parameter in found.whole:
                parameter.requires_grad_(False)
            language.frozen_rows += [FrozenRows(rows) for rows in found.rows]
