"""The model: a visual and a language stream, and the heads that bring both into one space."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from groundray import config
from groundray.model.language import LanguageStream, build_language
from groundray.model.visual import VisualStream, build_visual


class GroundedModel(nn.Module):
    """Two streams of one width, and a linear head on each: at each position, and at each token.

    Both heads start as the identity, so that what a pretrained stream knows is where training begins.
    """

    def __init__(self, visual: VisualStream, language: LanguageStream):
        super().__init__()
        self.visual = visual
        self.language = language
        self.visual_head = nn.Linear(language.width, language.width)
        self.language_head = nn.Linear(language.width, language.width)
        for head in (self.visual_head, self.language_head):
            nn.init.eye_(head.weight)
            nn.init.zeros_(head.bias)

    def encode_images(self, images: UInt8[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample position dim"]:
        """V: an embedding for each position of each image, to be matched with W."""
        return self.visual_head(self.visual(images))

    def encode_captions(
        self, tokens: Int[Tensor, "sample token"], attention_mask: Bool[Tensor, "sample token"]
    ) -> Float[Tensor, "sample token dim"]:
        """W: an embedding for each word piece of each caption, to be matched with V."""
        return self.language_head(self.language(tokens, attention_mask))

    def empty(self) -> tuple[Float[Tensor, "0 position dim"], Float[Tensor, "0 0 width"]]:
        """V and W of no sample."""
        new = self.visual_head.weight.new_zeros
        return new(0, self.visual.positions, self.language.width), new(0, 0, self.language.width)


def build(settings: config.Model, weights: bool = True) -> GroundedModel:
    """The model that the settings describe; what has no weights yet is drawn from torch's generator.

    Raises:
        ValueError: weights are not to be had or do not fit; the message names the setting.
    """
    language = build_language(settings.language, weights)
    return GroundedModel(build_visual(settings, language.width, weights), language)
