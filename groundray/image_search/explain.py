"""Why an image was found: match maps of a text's words on it, from the model of the grounding stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.image_decoder import size
from groundray.data.image_inputs import CentreCrop
from groundray.data.tokenization import WordPieceTokenizer, words_of
from groundray.data.transforms import centre_box
from groundray.image_search.errors import BadQuery
from groundray.image_search.uploads import model_input
from groundray.loss.match_map import Kind, match_map, similarity
from groundray.model import export
from groundray.model.grounded import GroundedModel
from groundray.stage.contrastive import Alignment, encode_for_match_map, pooled
from groundray.stage.protocol import centre_crop

STAGE = "grounding"


@dataclass(frozen=True)
class WordMap:
    """A word of a text, and how well each position of a picture matches it.

    Attributes:
        start, end: range of its characters in the text.
        map: mean over the word's pieces.
        peak: row and column of the best matching position.
    """

    text: str
    start: int
    end: int
    map: Float32[np.ndarray, "row column"]

    @property
    def peak(self) -> tuple[int, int]:
        row, column = np.unravel_index(int(self.map.argmax()), self.map.shape)
        return int(row), int(column)

    @property
    def score(self) -> float:
        """The match at the peak."""
        return float(self.map.max())


@dataclass(frozen=True)
class Match:
    """The match maps of a text on a picture.

    Attributes:
        words: the words of the text, up to the model's token limit.
        similarity: S(image, caption), on which the grounding stage was trained: of the maps, or of pooled vectors.
        crop: part of the picture that the model sees: left, top, right, bottom, as fractions of its width and height.
        first, step: centre of the first row and column of the maps within the crop, and the distance from one to the
            next, as fractions of its side.
    """

    words: tuple[WordMap, ...]
    similarity: float
    crop: tuple[float, float, float, float]
    first: float
    step: float


@dataclass(frozen=True)
class DecodedPicture:
    """The part of a picture that the model sees: its pixels, and where it lies in the picture (`Match.crop`)."""

    pixels: UInt8[np.ndarray, "3 side side"]
    crop: tuple[float, float, float, float]


@dataclass(frozen=True)
class Matcher:
    """Computes match maps of texts on pictures.

    Attributes:
        crop: part of a picture that the model sees.
        tokenizer: turns texts into word piece ids.
        kind, special_tokens, alignment: as the grounding stage was trained.
    """

    model: GroundedModel
    crop: CentreCrop
    tokenizer: WordPieceTokenizer
    kind: Kind
    special_tokens: bool
    alignment: Alignment = "match_map"

    @staticmethod
    def load(checkpoint: str) -> Matcher | None:
        """Load the matcher of an exported model; None if it has no grounding stage."""
        if STAGE not in [stage.name for stage in export.about(checkpoint).stages]:
            return None
        exported = export.load(checkpoint, STAGE)
        settings = exported.about.settings
        stage, image_size = config.Grounding(**settings[STAGE]), settings["model"]["image_size"]
        tokenizer = WordPieceTokenizer.of(exported.tokenizer, stage.max_tokens)
        crop = centre_crop(stage, image_size, training=False)
        return Matcher(exported.model, crop, tokenizer, stage.similarity, stage.special_tokens, stage.alignment)

    def match(self, text: str, encoded: bytes) -> Match:
        """Compute the match maps of a text on an encoded picture.

        Raises:
            BadQuery: the text has no words.
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return self.match_decoded(text, self.decode(encoded))

    def decode(self, encoded: bytes) -> DecodedPicture:
        """Decode and crop a picture.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return DecodedPicture(model_input(encoded, self.crop), self._visible(encoded))

    @torch.no_grad()
    def match_decoded(self, text: str, picture: DecodedPicture) -> Match:
        """Compute the match maps of a text on a decoded picture.

        Raises:
            BadQuery: the text has no words.
        """
        encoding = self.tokenizer.backend.encode(text)
        words = words_of(text, encoding)
        if not words:
            raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no words")
        ids, lengths = self.tokenizer.encode([text])
        batch = CaptionBatch.of([""], picture.pixels[None], ids, lengths)
        encoded = encode_for_match_map(self.model, batch, self.special_tokens)
        grid = self.model.visual.trunk.grid
        maps = match_map(encoded.V[0], encoded.W[0], self.kind).T.unflatten(1, (grid.side, grid.side)).numpy()
        V, W, valid, *_ = pooled(encoded) if self.alignment == "pooled" else encoded
        return Match(
            tuple(WordMap(text[start:end], start, end, maps[tokens].mean(axis=0)) for start, end, tokens in words),
            similarity(V, W, valid, self.kind).item(),
            picture.crop,
            grid.first / self.crop.crop,
            grid.stride / self.crop.crop,
        )

    def _visible(self, encoded: bytes) -> tuple[float, float, float, float]:
        """Return the crop as fractions of the picture (`Match.crop`)."""
        width, height = size(encoded)
        left, top, right, bottom = centre_box(width, height, self.crop.resize, self.crop.crop)
        return max(0.0, left / width), max(0.0, top / height), min(1.0, right / width), min(1.0, bottom / height)
