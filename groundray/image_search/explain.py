"""Why a picture was found: the match map of each word of a text on it, by the model of the grounding stage."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from tokenizers import Encoding

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.image_inputs import CentreCrop
from groundray.data.tokenization import WordPieces
from groundray.data.transforms import centre_box
from groundray.image_search.errors import BadQuery
from groundray.image_search.uploads import picture
from groundray.loss.match_map import Kind, match_map, similarity
from groundray.model import export
from groundray.model.grounded import GroundedModel
from groundray.stage.grounding import encode

STAGE = "grounding"


@dataclass(frozen=True)
class WordMap:
    """A word of a text, and how well each position of the picture matches it.

    Attributes:
        start, end: where it stands in the text.
        map: the mean over the word's pieces.
        peak: row and column of the position that matches best.
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
        """How well the best position matches."""
        return float(self.map.max())


@dataclass(frozen=True)
class Match:
    """What a text and a picture have to do with each other.

    Attributes:
        words: of the text, as far as the model reads it.
        similarity: S(image, caption), as the grounding stage was trained on it.
        crop: what the model sees of the picture: left, top, right and bottom, as shares of its width and height.
        first: where in the crop the first row and column of the maps look, as a share of its side; the next ones look
            a row's share of the side further.
    """

    words: tuple[WordMap, ...]
    similarity: float
    crop: tuple[float, float, float, float]
    first: float


@dataclass(frozen=True)
class Matcher:
    """Match maps of texts on pictures.

    Attributes:
        cut: what the model sees of a picture.
        pieces: how texts become word pieces.
        kind, special_tokens: how the stage was trained.
    """

    model: GroundedModel
    cut: CentreCrop
    pieces: WordPieces
    kind: Kind
    special_tokens: bool

    @staticmethod
    def load(checkpoint: str) -> Matcher | None:
        """The matcher of an exported model; None where it has no stage grounding."""
        if STAGE not in [stage.name for stage in export.about(checkpoint).stages]:
            return None
        exported = export.load(checkpoint, STAGE)
        settings = exported.about.settings
        stage, size = config.Grounding(**settings[STAGE]), settings["model"]["image_size"]
        pieces = WordPieces(exported.tokenizer.backend_tokenizer.to_str(), stage.max_tokens)
        cut = CentreCrop(stage.resize or size, size)
        return Matcher(exported.model, cut, pieces, stage.similarity, stage.special_tokens)

    @torch.no_grad()
    def match(self, text: str, encoded: bytes) -> Match:
        """The match maps of a text on an encoded picture.

        Raises:
            BadQuery: the text has no word.
            Unusable: the picture is damaged.
        """
        encoding = self.pieces.loaded.encode(text)
        words = _words(encoding)
        if not words:
            raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no word")
        pixels = picture(encoded, self.cut)[None]
        ids, lengths = self.pieces.encode([text])
        V, W, valid = encode(self.model, CaptionBatch.of([""], pixels, ids, lengths), self.special_tokens)
        side = round(V.shape[1] ** 0.5)
        maps = match_map(V[0], W[0], self.kind).T.unflatten(1, (side, side)).numpy()
        return Match(
            tuple(WordMap(text[start:end], start, end, maps[tokens].mean(axis=0)) for start, end, tokens in words),
            similarity(V, W, valid, self.kind).item(),
            self._crop(encoded),
            self.model.visual.trunk.first / self.cut.crop,
        )

    def _crop(self, encoded: bytes) -> tuple[float, float, float, float]:
        with Image.open(io.BytesIO(encoded)) as image:
            width, height = image.size
        left, top, right, bottom = centre_box(width, height, self.cut.resize, self.cut.crop)
        return max(0.0, left / width), max(0.0, top / height), min(1.0, right / width), min(1.0, bottom / height)


def _words(encoding: Encoding) -> list[tuple[int, int, list[int]]]:
    """Where each word starts and ends in its text, and which tokens are its pieces; [CLS] and [SEP] are no words."""
    places: dict[int, list[int]] = {}
    for place, word in enumerate(encoding.word_ids):
        if word is not None:
            places.setdefault(word, []).append(place)
    return [(encoding.offsets[tokens[0]][0], encoding.offsets[tokens[-1]][1], tokens) for tokens in places.values()]
