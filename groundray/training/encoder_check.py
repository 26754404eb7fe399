"""A check that the language stream's encoder, its tokenizer and the stages' settings fit each other.

It builds the encoder, and reads published weights, so that a run that cannot use them ends before it asks for workers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from groundray.config import Settings, SettingsError, TrainedLanguage
from groundray.model import encoder_layout
from groundray.model.build import build_language
from groundray.model.heads import MaskedLanguageHead


def check_encoder(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that every stage can train the language stream.

    Raises:
        ValueError: the encoder is none, lacks weights, or does not fit its tokenizer or a stage; the message names the
            setting and the repair.
    """
    with torch.device("meta"):
        encoder = build_language(settings.model.language, pretrained=False).encoder
        if "language" in settings.stages:
            MaskedLanguageHead(encoder.config)
    if settings.run.start_from is None and settings.model.language.weights != "none":
        build_language(settings.model.language)
    _check_tokenizer(settings, encoder, tokenizer)
    limit = encoder_layout.max_tokens(encoder)
    for name in settings.stages:
        stage = settings.stage(name)
        tokens = getattr(stage, "max_tokens", 0)
        if limit and tokens > limit:
            raise SettingsError(
                f"{name}.max_tokens: expected at most {limit}, for which {settings.model.language.name} has positions, "
                f"got {tokens}"
            )
        _check_trained_parts(name, encoder, getattr(stage, "trains", None))


def _check_tokenizer(settings: Settings, encoder: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    known = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise SettingsError(
            f"model.language: expected a tokenizer of at most the {known} tokens that {settings.model.language.name} "
            f"has embeddings for, got one of {len(tokenizer)}: give the model's own (model.language.tokenizer)"
        )


def _check_trained_parts(stage: str, encoder: Any, trains: Any) -> None:
    """Raise ValueError if the parts that a stage trains or freezes cannot be found."""
    if not isinstance(trains, TrainedLanguage):
        return
    layers = encoder_layout.layers(encoder)
    count = len(layers) if trains.language_layers == "all" else trains.language_layers
    try:
        encoder_layout.top(encoder, count)
        if count and not trains.query_key:
            encoder_layout.query_key(layers[-1], encoder.config.num_attention_heads)
    except ValueError as error:
        raise SettingsError(f"{stage}.{error}") from None
