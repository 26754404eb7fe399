"""Pictures and texts as vectors of length 1 in one space, by the model of the retrieval stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from groundray import arithmetic, config
from groundray.data.image_inputs import CentreCrop
from groundray.data.tokenization import WordPieceTokenizer
from groundray.image_search.errors import BadQuery
from groundray.model import export
from groundray.model.grounded import GroundedModel
from groundray.model.heads import RetrievalHeads
from groundray.model.relation_module import RelationalModule
from groundray.model.weights import digest
from groundray.stage.contrastive import image_vectors, text_vectors
from groundray.stage.protocol import centre_crop

STAGE = "retrieval"


@dataclass(frozen=True)
class Towers:
    """The image tower and the text tower of an exported model.

    Attributes:
        crop: part of a picture that the model sees.
        tokenizer: turns texts into word piece ids.
        special_tokens: count special tokens, such as [CLS] and [SEP], in the mean over a text.
        run_name: name of the run that trained the model.
        stages: the stages that the model was trained in.
    """

    model: GroundedModel
    crop: CentreCrop
    tokenizer: WordPieceTokenizer
    special_tokens: bool
    run_name: str
    stages: tuple[str, ...]

    @staticmethod
    def load(checkpoint: str) -> Towers:
        """Load the towers of an exported model.

        Raises:
            FileNotFoundError, ValueError: the folder is not an exported model, or it has no retrieval stage.
        """
        check_searchable(checkpoint)
        exported = export.load(checkpoint, STAGE)
        settings = exported.about.settings
        stage, size = config.Retrieval(**settings[STAGE]), settings["model"]["image_size"]
        return Towers(
            exported.model,
            centre_crop(stage, size, training=False),
            WordPieceTokenizer.of(exported.tokenizer, stage.max_tokens),
            stage.special_tokens,
            settings["run"]["name"],
            tuple(trained.name for trained in exported.about.stages),
        )

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self.model.width

    def to(self, device: str) -> Towers:
        """Return the towers with their model on a device."""
        return replace(self, model=self.model.to(device))

    def fingerprint(self) -> str:
        """Return a hash of what a picture's vector depends on: the weights it passes, its crop, and whose code."""
        modules = (
            self.model.visual,
            self.model.head(RelationalModule).attention.key,
            self.model.head(RetrievalHeads).image,
        )
        parts = [*map(digest, modules), self.crop.resize, self.crop.crop, self.model.visual.trunk.origin]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @torch.no_grad()
    def embed_pixels(self, pixels: UInt8[np.ndarray, "image 3 side side"]) -> Float32[np.ndarray, "image dim"]:
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
        """Raise BadQuery if a text has no word pieces besides special tokens."""
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
