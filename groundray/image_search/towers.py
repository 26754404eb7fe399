"""Pictures and texts as vectors of length 1 in one space: what a model must offer to be searched with, and the model of
the retrieval stage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from tokenizers import Tokenizer

from groundray import arithmetic, config
from groundray.data import transforms
from groundray.data.image_inputs import CentreCrop
from groundray.data.tokenization import WordPieceTokenizer
from groundray.image_search.errors import BadQuery
from groundray.model import export, heads, relation_module, timm_trunk, trunk, visual_stream
from groundray.model.grounded import GroundedModel
from groundray.model.heads import RetrievalHeads
from groundray.model.pooling import at_least_float32
from groundray.model.relation_module import RelationalModule
from groundray.model.weights import digest
from groundray.stage.contrastive import image_keys, image_vectors, text_vectors
from groundray.stage.protocol import centre_crop

STAGE = "retrieval"
Pixels = UInt8[np.ndarray, "3 row column"] | Float32[np.ndarray, "3 row column"]  # as a model takes a picture
PixelBatch = UInt8[np.ndarray, "image 3 row column"] | Float32[np.ndarray, "image 3 row column"]
Code = tuple[ModuleType | Callable[..., Any], ...]


@runtime_checkable  # tests check types as they run
class Towers(Protocol):
    """A model that gives each picture and each text a vector of length 1 in one space."""

    @property
    def name(self) -> str:
        """Name of the model, for display."""
        ...

    @property
    def kind(self) -> str:
        """What the model is: `groundray`, or transformers' type of it, such as `clip`."""
        ...

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the model was trained in; none for a model that groundray did not train."""
        ...

    @property
    def width(self) -> int:
        """Width of a vector."""
        ...

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of texts."""
        ...

    @property
    def code(self) -> Code:
        """What computes a picture's vector, beside the decoder."""
        ...

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How a picture becomes the model's input, for the index's record."""
        ...

    def to(self, device: str) -> Towers:
        """Return the towers with their model on a device."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of what a picture's vector depends on, beside the code."""
        ...

    def preprocess(self, encoded: bytes) -> Pixels:
        """Return an encoded picture as the model takes it.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        ...

    def embed_pixels(self, pixels: PixelBatch) -> Float32[np.ndarray, "image dim"]:
        """Return a vector for each preprocessed picture."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """Return a vector for each text. What is longer than the model can take is cut."""
        ...

    def check_text(self, text: str) -> None:
        """Raise BadQuery if a text has no words."""
        ...


@dataclass(frozen=True)
class RetrievalTowers:
    """The image tower and the text tower of an exported model with stage retrieval.

    Attributes:
        crop: part of a picture that the model sees.
        tokenizer: turns texts into word piece ids.
        special_tokens: count special tokens, such as [CLS] and [SEP], in the mean over a text.
        name: name of the run that trained the model.
        stages: the stages that the model was trained in.
    """

    model: GroundedModel
    crop: CentreCrop
    tokenizer: WordPieceTokenizer
    special_tokens: bool
    name: str
    stages: tuple[str, ...]

    @staticmethod
    def load(checkpoint: str) -> RetrievalTowers:
        """Load the towers of an exported model.

        Raises:
            FileNotFoundError, ValueError: the folder is not an exported model, or it has no retrieval stage.
        """
        check_searchable(checkpoint)
        exported = export.load(checkpoint, STAGE)
        settings = exported.about.settings
        stage, size = config.Retrieval(**settings[STAGE]), settings["model"]["image_size"]
        return RetrievalTowers(
            exported.model,
            centre_crop(stage, size, training=False),
            WordPieceTokenizer.of(exported.tokenizer, stage.max_tokens),
            stage.special_tokens,
            settings["run"]["name"],
            tuple(trained.name for trained in exported.about.stages),
        )

    @property
    def kind(self) -> str:
        """What the model is."""
        return "groundray"

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self.model.width

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of texts."""
        return self.tokenizer.backend

    @property
    def code(self) -> Code:
        """What computes a picture's vector, beside the decoder."""
        of_model = (transforms, trunk, timm_trunk, visual_stream, relation_module, heads)
        return (*of_model, image_keys, image_vectors, at_least_float32, RetrievalTowers)

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How a picture becomes the model's input, for the index's record."""
        return {"resize": self.crop.resize, "crop": self.crop.crop}

    def to(self, device: str) -> RetrievalTowers:
        """Return the towers with their model on a device."""
        return replace(self, model=self.model.to(device))

    def fingerprint(self) -> str:
        """Return a hash of what a picture's vector depends on: the weights it passes, its crop, and whose code."""
        modules = (
            self.model.visual,
            self.model.head(RelationalModule).attention.key,
            self.model.head(RetrievalHeads).image,
        )
        visual = self.model.visual
        parts = [*map(digest, modules), visual.heads, self.crop.resize, self.crop.crop, visual.trunk.origin]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def preprocess(self, encoded: bytes) -> UInt8[np.ndarray, "3 side side"]:
        """Return an encoded picture, decoded and cropped.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return transforms.centre_crop(encoded, self.crop.resize, self.crop.crop)

    @torch.no_grad()
    def embed_pixels(self, pixels: PixelBatch) -> Float32[np.ndarray, "image dim"]:
        """Return a vector for each cropped picture."""
        with arithmetic.using("float32", self._device):
            return image_vectors(self.model, torch.from_numpy(pixels).to(self._device)).cpu().numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """Return a vector for each text. Word pieces beyond the model's `max_tokens` are ignored."""
        ids, lengths = self.tokenizer.encode(texts)
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        tokens = torch.from_numpy(ids[:, : lengths.max()].astype(np.int64))
        with arithmetic.using("float32", self._device):
            return text_vectors(self.model, tokens.to(self._device), mask, self.special_tokens).cpu().numpy()

    def check_text(self, text: str) -> None:
        """Raise BadQuery if a text has no words."""
        if self.tokenizer.is_empty(text):
            raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no words")

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def check_searchable(checkpoint: str) -> export.About:
    """Return the description of an exported model, after a check that it can search. No weights are read.

    Raises:
        FileNotFoundError, ValueError: the folder is not an exported model, or it has no retrieval stage.
    """
    about = export.about(checkpoint)
    stages = [stage.name for stage in about.stages]
    if STAGE not in stages:
        raise ValueError(
            f"search needs stage {STAGE}; the model at {checkpoint} has {', '.join(stages)}: "
            f"train it further with `python -m groundray.train --config ... --run.start_from {checkpoint} --run.name "
            f"... --stages {'' if 'relational' in stages else 'relational,'}{STAGE}`"
        )
    return about
