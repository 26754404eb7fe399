"""The model: a visual and a language stream of one width, and the heads that stages add to them."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from groundray.model.language_stream import LanguageStream
from groundray.model.relation_module import RelationalModule
from groundray.model.visual_stream import Images, VisualStream

Head = TypeVar("Head", bound=nn.Module)


class GroundedModel(nn.Module):
    """Two streams of one width, and heads by the name of the stage that trains them.

    Attributes:
        heads: a module for each stage that has one (`build.HEADS`); empty at first.
    """

    def __init__(self, visual: VisualStream, language: LanguageStream):
        super().__init__()
        self.visual = visual
        self.language = language
        self.heads = nn.ModuleDict()

    def blank(self, images: Images | Float[Tensor, "image position dim"]) -> Tensor:
        """Return as many images of the trunk's mean colour: pixels, feature maps or keys, as the given images are."""
        if images.dim() != 3:
            return self.visual.blank(images)
        maps = self.visual.blank(images.new_empty(1, *self.visual.trunk.shape, dtype=torch.bfloat16))
        return self.head(RelationalModule).attention.key(self.visual(maps)).expand_as(images)

    @property
    def width(self) -> int:
        """Dimension of an embedding of both streams."""
        return self.language.width

    def head(self, kind: type[Head]) -> Head:
        """Return the head of a class.

        Raises:
            KeyError: the model has no such head.
        """
        for head in self.heads.values():
            if isinstance(head, kind):
                return head
        raise KeyError(f"the model has no {kind.__name__}, only the heads of: {', '.join(self.heads) or 'no stage'}")
