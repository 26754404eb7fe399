"""What each stage adds to the two streams: its head, by the stage's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from groundray import config
from groundray.model.language_stream import LanguageStream
from groundray.model.relation_module import RelationalModule
from groundray.model.visual_stream import VisualStream

Vocabulary = Mapping[str, tuple[str, ...]]  # what the numbers of a stage's data stand for: `classes`, `predicates`


class Classifier(nn.Module):
    """The class of an image: 2x2 max-pool of the positions, then two hidden layers (paper, visual stage).

    Without hidden layers it is a linear map of the maximum over all positions, so that a class is what lies anywhere
    in the image, as a word of the match map will be.
    """

    def __init__(self, width: int, positions: int, hidden: int, classes: int):
        super().__init__()
        self.side = round(positions**0.5)
        self.window = min(2, self.side) if hidden else self.side
        pooled = (self.side // self.window) ** 2 * width
        self.layers = (
            nn.Sequential(
                nn.Linear(pooled, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, classes),
            )
            if hidden
            else nn.Sequential(nn.Linear(pooled, classes))
        )
        for layer in self.layers[:-1]:
            if isinstance(layer, nn.Linear):  # torch's own start shrinks what passes a ReLU to 0.4 of its size
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def set_dropout(self, share: float) -> None:
        """Set the dropout between its layers, a share from 0 to 1."""
        _set_dropout(self, share)

    def forward(self, V: Float[Tensor, "image position dim"]) -> Float[Tensor, "image class"]:
        """The logits of each class."""
        grid = V.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.layers(F.max_pool2d(grid, self.window).flatten(1))


class MaskedLanguageHead(nn.Module):
    """Which word piece stood at a place (Devlin et al. 2019); its output matrix is the word embeddings' own."""

    def __init__(self, language: LanguageStream):
        super().__init__()
        self.transform = BertPredictionHeadTransform(language.bert.config)
        self.bias = nn.Parameter(torch.zeros(language.bert.config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "place dim"], embeddings: Float[Tensor, "word dim"]
    ) -> Float[Tensor, "place word"]:
        """The logits of each word piece of the vocabulary."""
        return F.linear(self.transform(hidden), embeddings, self.bias)


class GroundingHeads(nn.Module):
    """A linear map on each stream, into the space of the match map.

    Both start as the identity, so that what a pretrained stream knows is where training begins.
    """

    def __init__(self, width: int):
        super().__init__()
        self.visual = nn.Linear(width, width)
        self.language = nn.Linear(width, width)
        for head in (self.visual, self.language):
            nn.init.eye_(head.weight)
            nn.init.zeros_(head.bias)


class RetrievalHeads(nn.Module):
    """One vector an image and one a caption, of length 1, for image search.

    A two-layer MLP on the cross-modal attention's keys at each position, another on its query at each token; then the
    mean over positions, or over the tokens that count (paper, retrieval).
    """

    def __init__(self, width: int):
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width))
            for _ in range(2)
        )

    def set_dropout(self, share: float) -> None:
        """Set the dropout between each head's layers, a share from 0 to 1."""
        _set_dropout(self, share)

    def images(self, keys: Float[Tensor, "image position dim"]) -> Float[Tensor, "image dim"]:
        return F.normalize(self.image(keys).mean(dim=1), dim=-1)

    def texts(
        self, queries: Float[Tensor, "text token dim"], valid: Bool[Tensor, "text token"]
    ) -> Float[Tensor, "text dim"]:
        return F.normalize(pooled(self.text(queries), valid), dim=-1)


def _set_dropout(head: nn.Module, share: float) -> None:
    for layer in head.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = share


def pooled(x: Float[Tensor, "text token dim"], valid: Bool[Tensor, "text token"]) -> Float[Tensor, "text dim"]:
    """The mean over the tokens that count; 0 where none does."""
    counts = valid.sum(dim=1, keepdim=True).clamp(min=1)
    return (x * valid[:, :, None]).sum(dim=1) / counts


Build = Callable[[config.Model, VisualStream, LanguageStream, Vocabulary], nn.Module]

HEADS: dict[str, Build] = {
    "visual": lambda settings, visual, language, words: Classifier(
        language.width, visual.positions, settings.classifier, len(words["classes"])
    ),
    "language": lambda settings, visual, language, words: MaskedLanguageHead(language),
    "grounding": lambda settings, visual, language, words: GroundingHeads(language.width),
    "relational": lambda settings, visual, language, words: RelationalModule(
        language.width,
        predicates=len(words["predicates"]),
        classes=len(words["classes"]),
        heads=settings.relational.attention_heads,
        space=settings.relational.space,
        hidden=settings.relational.hidden,
    ),
    "retrieval": lambda settings, visual, language, words: RetrievalHeads(language.width),
}
