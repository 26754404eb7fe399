"""The model: a visual and a language stream of one width, and the heads that the stages add to them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from groundray import config
from groundray.model.heads import HEADS, Vocabulary
from groundray.model.language_stream import LanguageStream, build_language
from groundray.model.visual_stream import VisualStream, build_visual
from groundray.rng import hash64, hash_name

Head = TypeVar("Head", bound=nn.Module)


class GroundedModel(nn.Module):
    """Two streams of one width, and heads by the name of the stage that made them (see `heads.HEADS`)."""

    def __init__(self, visual: VisualStream, language: LanguageStream):
        super().__init__()
        self.visual = visual
        self.language = language
        self.heads = nn.ModuleDict()

    @property
    def width(self) -> int:
        return self.language.width

    def head(self, kind: type[Head]) -> Head:
        """The head of a kind."""
        found = next((head for head in self.heads.values() if isinstance(head, kind)), None)
        if found is None:
            raise KeyError(
                f"the model has no {kind.__name__}; it has the heads of {', '.join(self.heads) or 'nothing'}"
            )
        return found


def build(settings: config.Model, weights: bool = True) -> GroundedModel:
    """Both streams as the settings describe them; what has no weights yet is drawn from torch's generator.

    Raises:
        ValueError: weights are not to be had or do not fit; the message names the setting.
    """
    language = build_language(settings.language, weights)
    return GroundedModel(build_visual(settings, language.width, weights), language)


def build_head(name: str, settings: config.Model, model: GroundedModel, words: Vocabulary, seed: int = 0) -> nn.Module:
    """A fresh head of a stage for this model, with the model's precision and device; the same for the same seed.

    Args:
        words: what the numbers of the stage's data stand for.

    Raises:
        ValueError: the words that the head is for are not known.
    """
    parameter = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash64(seed, hash_name(f"head of {name}"))) >> 1)
        try:
            head = HEADS[name](settings, model.visual, model.language, words)
        except KeyError as missing:
            raise ValueError(
                f"the head of stage {name} is for the {missing.args[0]} of shards, which tell none"
            ) from None
    return head.to(parameter.device, parameter.dtype)
