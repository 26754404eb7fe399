"""Pictures and texts as vectors of length 1 in one space: what the retrieval stage has trained."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from groundray import config
from groundray.data.image_inputs import CentreCrop
from groundray.data.tokenization import WordPieces
from groundray.image_search.errors import BadQuery
from groundray.model import export
from groundray.model.grounded import GroundedModel
from groundray.model.heads import RetrievalHeads
from groundray.model.relation_module import RelationalModule
from groundray.model.weights import digest
from groundray.stage.retrieval import image_vectors, text_vectors

STAGE = "retrieval"


@dataclass(frozen=True)
class Towers:
    """The two ways into the space of search.

    Attributes:
        cut: what the model sees of a picture.
        pieces: how texts become word pieces.
        special_tokens: [CLS] and [SEP] count in the mean over a text.
        name: of the run that trained the model.
        stages: that the model was trained in.
    """

    model: GroundedModel
    cut: CentreCrop
    pieces: WordPieces
    special_tokens: bool
    name: str
    stages: tuple[str, ...]

    @staticmethod
    def load(checkpoint: str) -> Towers:
        """The towers of an exported model.

        Raises:
            FileNotFoundError, ValueError: it is no export, or has no stage retrieval.
        """
        check(checkpoint)
        exported = export.load(checkpoint, STAGE)
        settings = exported.about.settings
        stage, size = config.Retrieval(**settings[STAGE]), settings["model"]["image_size"]
        return Towers(
            exported.model,
            CentreCrop(stage.resize or size, size),
            WordPieces(exported.tokenizer.backend_tokenizer.to_str(), stage.max_tokens),
            stage.special_tokens,
            settings["run"]["name"],
            tuple(one.name for one in exported.about.stages),
        )

    @property
    def width(self) -> int:
        """Of a vector."""
        return self.model.width

    def to(self, device: str) -> Towers:
        return replace(self, model=self.model.to(device))

    def fingerprint(self) -> str:
        """What a picture's vector follows from: the weights on its way, and how it is cut."""
        way = (
            self.model.visual,
            self.model.head(RelationalModule).attention.key,
            self.model.head(RetrievalHeads).image,
        )
        told = [*map(digest, way), self.cut.resize, self.cut.crop]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    @torch.no_grad()
    def of_pixels(self, pixels: UInt8[np.ndarray, "image 3 side side"]) -> Float32[np.ndarray, "image dim"]:
        """A vector for each picture that was cut."""
        return image_vectors(self.model, torch.from_numpy(pixels).to(self._device)).cpu().numpy()

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """A vector for each text; what is beyond the most word pieces that the model was trained with is not read."""
        ids, lengths = self.pieces.encode(texts)
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        tokens = torch.from_numpy(ids[:, : lengths.max()].astype(np.int64))
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        return text_vectors(self.model, tokens, mask, self.special_tokens).cpu().numpy()

    def check(self, text: str) -> None:
        """Raise BadQuery where a text has no word piece beside [CLS] and [SEP]."""
        if len(self.pieces.loaded.encode(text).ids) <= 2:
            raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no word")

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def check(checkpoint: str) -> export.About:
    """What an exported model that can search tells of itself; no weights are read.

    Raises:
        FileNotFoundError, ValueError: it is no export, or has no stage retrieval.
    """
    about = export.about(checkpoint)
    stages = [stage.name for stage in about.stages]
    if STAGE not in stages:
        raise ValueError(
            f"search needs the vectors of stage {STAGE}; the model at {checkpoint} was trained in {', '.join(stages)}: "
            f"train it further with `python -m groundray.train --config ... --run.start_from {checkpoint} --run.name "
            f"... --stages {'' if 'relational' in stages else 'relational,'}{STAGE}`"
        )
    return about
