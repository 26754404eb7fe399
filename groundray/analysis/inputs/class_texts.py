"""Classes as texts: their names in template sentences, embedded by a dual encoder (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from groundray.analysis.inputs.dual_encoder import DualEncoder, Texts, scores
from groundray.analysis.inputs.embedding import SLOT
from groundray.analysis.inputs.on_disk import on_disk

TEMPLATES = ("a photo of a {}.",)  # CLIP's, where no other is given
TEXTS = 256  # encoded at once


def named(label: str) -> str:
    """Return the name of a class as words: underscores are spaces."""
    return " ".join(label.replace("_", " ").split())


class ClassTexts:
    """The classes of a data set as an encoder embeds them.

    Of an encoder with one vector for a text, a class is the mean of its sentences' vectors, scaled to length 1. A match
    map compares each token of a sentence, which have no mean: there, a class's score is the mean over its sentences.
    (The mean of the vectors gives the same order of classes as the mean of cosines, but for its length.)
    """

    def __init__(self, encoder: DualEncoder, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> None:
        self._encoder = encoder
        names = [named(label) for label in labels]
        self.unknown = sum(not known for known in encoder.known(names))
        blocks = [
            [[template.replace(SLOT, name) for name in names[start : start + TEXTS]] for template in templates]
            for start in range(0, len(names), TEXTS)
        ]
        if encoder.has_vectors:
            self._sentences = [[_mean([encoder.texts(sentences)[0] for sentences in block]) for block in blocks]]
        else:
            self._sentences = [
                [_kept(encoder.texts(block[place])) for block in blocks] for place in range(len(templates))
            ]

    def scores(self, V: Float[Tensor, "image position dim"]) -> Float[np.ndarray, "image class"]:
        """Return the score of each image and each class."""
        parts = [
            np.concatenate([scores(self._encoder, V, block) for block in sentences], axis=1)
            for sentences in self._sentences
        ]
        return np.mean(parts, axis=0)


def _mean(vectors: Sequence[Float[Tensor, "text 1 dim"]]) -> Texts:
    mean = F.normalize(torch.stack([F.normalize(part, dim=-1) for part in vectors]).mean(dim=0), dim=-1)
    return mean, torch.ones(mean.shape[:2], dtype=torch.bool)


def _kept(texts: Texts) -> Texts:
    return on_disk(texts[0]), texts[1]
