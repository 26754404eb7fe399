"""Dual encoders: models that embed images and texts apart, and compare any image with any text by a similarity.

A stage of an exported model (`grounding`, `retrieval`), or a model of image and text as transformers writes it (CLIP,
SigLIP, ALIGN ...), with its own image processor and tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from groundray.config import Settings
from groundray.data.image_decoder import decode
from groundray.data.image_inputs import ImageInputs
from groundray.data.tokenization import WordPieceTokenizer
from groundray.loss.match_map import Kind, normalised, similarity_to_words
from groundray.model import export
from groundray.model.export import Exported
from groundray.model.heads import GroundingHeads
from groundray.model.pooling import counted_tokens, pooled_images, pooled_texts
from groundray.model.two_towers import TwoTowers, known
from groundray.stage.contrastive import Alignment, image_vectors, text_vectors
from groundray.stage.protocol import centre_crop

STAGES = ("grounding", "retrieval")  # that compare images with texts
HOW: dict[Alignment, str] = {"match_map": "match map", "pooled": "pooled vectors"}

Texts = tuple[Float[Tensor, "text token dim"], Bool[Tensor, "text token"]]


class DualEncoder(Protocol):
    """A model of images and texts.

    Its similarity is the mean over a text's valid tokens of the best position's match (`loss.match_map`). Of one vector
    for each image and text that is their cosine.
    """

    @property
    def name(self) -> str:
        """Name of the stage, or that the command line gives."""
        ...

    @property
    def how(self) -> str:
        """What images and texts are compared by, for display."""
        ...

    @property
    def kind(self) -> Kind:
        """Similarity of a position and a token."""
        ...

    @property
    def image_inputs(self) -> ImageInputs:
        """How encoded images become the arrays that `images` takes."""
        ...

    @property
    def has_vectors(self) -> bool:
        """Whether an image and a text are one vector each, of length 1."""
        ...

    def known(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it has word pieces, and no unknown one."""
        ...

    def images(self, arrays: np.ndarray) -> Float[Tensor, "image position dim"]:
        """Return the embeddings of images."""
        ...

    def texts(self, texts: Sequence[str]) -> Texts:
        """Return the embeddings of texts, and which tokens the similarity averages over."""
        ...

    def blank(self, arrays: np.ndarray) -> np.ndarray:
        """Return as many images of the mean colour of those that the model was trained on."""
        ...


@dataclass(frozen=True)
class StageEncoder:
    """The model of a stage, `grounding` or `retrieval`, which compares images and texts as it was trained and
    validated."""

    name: str
    exported: Exported

    @staticmethod
    def load(checkpoint: str, stage: str) -> StageEncoder:
        """Load a stage of an exported model.

        Raises:
            FileNotFoundError, ValueError: the folder is not an exported model, or it lacks the stage.
        """
        return StageEncoder(stage, export.load(checkpoint, stage))

    @property
    def how(self) -> str:
        return HOW[self._alignment] if self.name == "grounding" else "retrieval heads"

    @property
    def kind(self) -> Kind:
        return self._settings.similarity if self.name == "grounding" else "cosine"

    @property
    def image_inputs(self) -> ImageInputs:
        return centre_crop(self._settings, self.exported.about.settings["model"]["image_size"], training=False)

    @property
    def has_vectors(self) -> bool:
        return self.name != "grounding" or self._alignment == "pooled"

    def known(self, texts: Sequence[str]) -> list[bool]:
        return known(self.exported.tokenizer, texts)

    @torch.no_grad()
    def images(self, arrays: np.ndarray) -> Float[Tensor, "image position dim"]:
        model, pixels = self.exported.model, torch.from_numpy(arrays)
        if self.name != "grounding":
            return image_vectors(model, pixels)[:, None]
        V = model.head(GroundingHeads).visual(model.visual(pixels))
        return pooled_images(V) if self._alignment == "pooled" else V

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Texts:
        model, special_tokens = self.exported.model, self._settings.special_tokens
        ids, lengths = self._tokenizer.encode(texts)
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        tokens = torch.from_numpy(ids[:, : lengths.max()].astype(np.int64))
        if self.name != "grounding":
            vectors = text_vectors(model, tokens, mask, special_tokens)[:, None]
            return vectors, torch.ones(len(texts), 1, dtype=torch.bool)
        W = model.head(GroundingHeads).language(model.language(tokens, mask))
        valid = counted_tokens(mask, special_tokens, model.language.special_tokens)
        return pooled_texts(W, valid) if self._alignment == "pooled" else (W, valid)

    def blank(self, arrays: np.ndarray) -> np.ndarray:
        return self.exported.model.visual.blank(torch.from_numpy(arrays)).numpy()

    @cached_property
    def _settings(self) -> Any:
        return Settings.stored(self.exported.about.settings).stage(self.name)

    @property
    def _alignment(self) -> Alignment:
        return self._settings.alignment

    @cached_property
    def _tokenizer(self) -> WordPieceTokenizer:
        return WordPieceTokenizer.of(self.exported.tokenizer, self._settings.max_tokens)


@dataclass(frozen=True)
class ProcessedImages:
    """Image inputs by the image processor of a model of two towers."""

    towers: TwoTowers

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return table

    def arrays(self, table: pa.Table) -> np.ndarray:
        """Return the pixels of each row, resized, cropped and normalised as the model's own pictures were."""
        pictures = [decode(encoded.as_py()) for encoded in table["image"]]
        return self.towers.pixels(pictures) if pictures else np.empty((0, 3, 1, 1), np.float32)


@dataclass(frozen=True)
class PretrainedEncoder:
    """A CLIP, or another model of two towers with a vector each, as transformers loads it."""

    name: str
    towers: TwoTowers
    how: str = "cosine"
    kind: Kind = "cosine"
    has_vectors: bool = True

    @staticmethod
    def load(name: str, place: str) -> PretrainedEncoder:
        """Load a model as `TwoTowers.load`."""
        return PretrainedEncoder(name, TwoTowers.load(place))

    @property
    def image_inputs(self) -> ImageInputs:
        return ProcessedImages(self.towers)

    def known(self, texts: Sequence[str]) -> list[bool]:
        return known(self.towers.tokenizer, texts)

    def images(self, arrays: np.ndarray) -> Float[Tensor, "image 1 dim"]:
        return self.towers.image_vectors(arrays)[:, None]

    def texts(self, texts: Sequence[str]) -> Texts:
        return self.towers.text_vectors(texts)[:, None], torch.ones(len(texts), 1, dtype=torch.bool)

    def blank(self, arrays: np.ndarray) -> np.ndarray:
        return np.zeros_like(arrays)  # normalised: the mean colour


class DualEncoders:
    """The dual encoders of a command. Each is loaded once, when it is first used."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str], DualEncoder] = {}

    def stage(self, checkpoint: str, name: str) -> StageEncoder:
        """Return a stage of an exported model, as `StageEncoder.load`."""
        return self._once((checkpoint, name), lambda: StageEncoder.load(checkpoint, name))

    def model(self, name: str, place: str) -> PretrainedEncoder:
        """Return another model, as `PretrainedEncoder.load`."""
        return self._once((place, ""), lambda: PretrainedEncoder.load(name, place))

    def _once(self, key: tuple[str, str], load: Callable[[], Any]) -> Any:
        if key not in self._loaded:
            self._loaded[key] = load()
        return self._loaded[key]


def scores(
    encoder: DualEncoder, V: Float[Tensor, "image position dim"], texts: Texts
) -> Float[np.ndarray, "image text"]:
    """Return the similarity of each image and each text."""
    W, valid = texts
    words = normalised(W, encoder.kind)[valid]
    return similarity_to_words(normalised(V, encoder.kind), words, valid).numpy()
