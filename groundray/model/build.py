"""Models and heads as the settings describe them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel

from groundray import config
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Classifier, GroundingHeads, MaskedLanguageHead, RetrievalHeads, Vocabulary
from groundray.model.language_stream import LanguageStream
from groundray.model.pretrained import load_encoder, load_encoder_config, load_tokenizer, random_encoder
from groundray.model.relation_module import RelationalModule
from groundray.model.trunk import build_trunk
from groundray.model.visual_stream import VisualStream
from groundray.rng import hash64, hash_name

INITIAL_BIAS = -10.0  # of the sigmoid loss: nearly all pairs do not match (Zhai et al. 2023, SigLIP)


def build_model(settings: config.Model, pretrained: bool = True) -> GroundedModel:
    """Build both streams. Parameters without pretrained weights are drawn from torch's default generator.

    Args:
        pretrained: False leaves all parameters random, whatever the settings say.

    Raises:
        ValueError: weights cannot be loaded or do not fit; the message names the setting.
    """
    language = build_language(settings.language, pretrained)
    return GroundedModel(build_visual(settings, language.width, pretrained), language)


def build_visual(settings: config.Model, width: int, pretrained: bool = True) -> VisualStream:
    """Build the visual stream with embeddings of the given width.

    Raises:
        ValueError: weights cannot be loaded, or sizes do not fit; the message names the setting.
    """
    if width % settings.attention_heads:
        raise ValueError(
            f"model.attention_heads: expected a number that divides the width {width}, got {settings.attention_heads}"
        )
    trunk = build_trunk(settings.trunk.name, settings.trunk.weights if pretrained else "none", settings.image_size)
    return VisualStream(
        trunk,
        width,
        settings.attention_heads,
        settings.attention_ffn,
        settings.initialization,
    )


def build_language(settings: config.Language, pretrained: bool = True) -> LanguageStream:
    """Build the language stream.

    Raises:
        ValueError: the model cannot be loaded, or it is no encoder.
    """
    if settings.name == "tiny":
        return LanguageStream(_tiny_bert(settings))
    if pretrained and settings.weights != "none":
        load_encoder_config(settings)  # checks that the weights are of its architecture
        return LanguageStream(load_encoder(settings))
    return LanguageStream(random_encoder(settings))


def _tiny_bert(settings: config.Language) -> BertModel:
    tokenizer: Any = load_tokenizer(settings)
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.width,
            pad_token_id=tokenizer.pad_token_id,
        ),
        add_pooling_layer=False,
    )


def build_head(
    stage: str, settings: config.Model, model: GroundedModel, vocabulary: Vocabulary, seed: int = 0
) -> nn.Module:
    """Build a stage's head with random weights, in the model's precision and on its device.

    The weights are a function of `seed` and the stage's name.

    Args:
        vocabulary: names of the stage's classes and predicates, which fix the head's size.

    Raises:
        ValueError: the vocabulary lacks what the head needs.
    """
    parameter = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash64(seed, hash_name(f"head of {stage}"))) >> 1)
        try:
            head = HEADS[stage](settings, model, vocabulary)
        except KeyError as missing:
            raise ValueError(
                f"the head of stage {stage} needs the {missing.args[0]} of its data set, whose shards list none"
            ) from None
    return head.to(parameter.device, parameter.dtype)


def learn_logits(head: nn.Module, stage: config.Stage) -> None:
    """Give the grounding heads the parameters that the loss of their stage learns, and no others; leave other heads.

    Parameters that the heads have already keep their values.
    """
    if isinstance(head, GroundingHeads) and isinstance(stage, config.Grounding):
        temperature = stage.temperature if stage.learns_temperature else None
        head.logits.learn(temperature, INITIAL_BIAS if stage.loss == "sigmoid" else None)


HEADS: dict[str, Callable[[config.Model, GroundedModel, Vocabulary], nn.Module]] = {
    "visual": lambda settings, model, vocabulary: Classifier(
        model.width,
        model.visual.positions,
        settings.classifier,
        len(vocabulary["classes"]),
        settings.initialization,
        settings.classifier_input,
    ),
    "language": lambda settings, model, vocabulary: MaskedLanguageHead(model.language.encoder.config),
    "grounding": lambda settings, model, vocabulary: GroundingHeads(model.width, settings.initialization),
    "relational": lambda settings, model, vocabulary: RelationalModule(
        model.width,
        predicates=len(vocabulary["predicates"]),
        classes=len(vocabulary["classes"]),
        heads=settings.relational.attention_heads,
        space=settings.relational.space,
        hidden=settings.relational.hidden,
        initialization=settings.initialization,
        operators=settings.relational.operator_initialization,
    ),
    "retrieval": lambda settings, model, vocabulary: RetrievalHeads(model.width),
}
