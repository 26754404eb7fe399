"""Why an image was found: match maps of a text's words on it. What a model must offer for them, and the model of the
grounding stage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from groundray import arithmetic, config
from groundray.data import tokenization, transforms
from groundray.data.image_decoder import size
from groundray.data.image_inputs import CentreCrop
from groundray.data.schema import class_name
from groundray.data.tokenization import WordPieceTokenizer, words_of
from groundray.data.transforms import centre_box, centre_crop
from groundray.image_search.errors import BadQuery
from groundray.image_search.towers import Code, PixelBatch, Pixels
from groundray.image_search.uploads import model_input
from groundray.loss import match_map as matching
from groundray.loss.match_map import Kind, match_map, normalised, similarity
from groundray.model import encoder_layout, export, heads, language_stream, packing, timm_trunk, trunk, visual_stream
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.model.pooling import counted_tokens
from groundray.model.weights import architecture, digest
from groundray.stage import protocol
from groundray.stage.contrastive import Alignment, Encoded, pooled

STAGE = "grounding"
Word = tuple[int, int, list[int]]  # start and end of its characters, and its tokens


@dataclass(frozen=True)
class WordMap:
    """A word of a text, and how well each position of a picture matches it.

    Attributes:
        start, end: range of its characters in the text.
        map: mean over the word's pieces.
        features: what positions are compared with, as `WordFeatures.features`.
        peak: row and column of the best matching position.
    """

    text: str
    start: int
    end: int
    map: Float32[np.ndarray, "row column"]
    features: Float32[np.ndarray, " dim"]

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
        words: the words of the text, up to the model's token limit, without special tokens.
        similarity: of picture and text, as the model was trained. That of the grounding stage, S(image, caption), is
            the mean of the best matches of all tokens that it counts, special ones such as [CLS] among them or not, or
            the cosine of pooled vectors. It is not the mean over the words, which is `mean`.
        crop: part of the picture that the model sees: left, top, right, bottom, as fractions of its width and height.
        first, step: centre of the first row and column of the maps within the crop, and the distance from one to the
            next, as fractions of its side.
    """

    words: tuple[WordMap, ...]
    similarity: float
    crop: tuple[float, float, float, float]
    first: float
    step: float

    @property
    def mean(self) -> float:
        """Mean of the words' scores, without that of the whole text, which some models have a map of."""
        *others, last = self.words
        return float(np.mean([word.score for word in (*(word for word in others if word.end < last.end), last)]))


@dataclass(frozen=True)
class DecodedPicture:
    """The part of a picture that the model sees: its pixels, and where it lies in the picture (`Match.crop`)."""

    pixels: Pixels
    crop: tuple[float, float, float, float]


@dataclass(frozen=True)
class WordFeatures:
    """The words of a text, and what positions of a picture are compared with.

    Attributes:
        ranges: start and end of each word's characters in the text.
        features: the product of a word's features and those of a position is their match.
    """

    ranges: tuple[tuple[int, int], ...]
    features: Float32[np.ndarray, "word dim"]


@runtime_checkable  # tests check types as they run
class Matcher(Protocol):
    """Computes match maps of texts on pictures. A match is a product of a position's features and a word's."""

    @property
    def code(self) -> Code:
        """What computes a picture's position features, beside the decoder."""
        ...

    @property
    def text_code(self) -> Code:
        """What computes a word's features."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the object classes that the model was trained to tell, if any: each has a word."""
        ...

    def to(self, device: str) -> Matcher:
        """Return the matcher with its model on a device."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of what a picture's position features depend on, beside the code."""
        ...

    def text_fingerprint(self) -> str:
        """Return a hash of what a word's features depend on, beside the code."""
        ...

    def preprocess(self, encoded: bytes) -> Pixels:
        """Return an encoded picture as the model takes it.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        ...

    def position_features(self, pixels: PixelBatch) -> Float32[np.ndarray, "image position dim"]:
        """Return the features of each position of preprocessed pictures, row by row."""
        ...

    def word_features(self, text: str) -> WordFeatures:
        """Return the features of each word of a text, up to the model's token limit.

        Raises:
            BadQuery: the text has no words.
        """
        ...

    def word_features_of(self, texts: Sequence[str]) -> list[WordFeatures]:
        """Return the features of each word of several texts, which are embedded together.

        Raises:
            BadQuery: a text has no words.
        """
        ...

    def decode(self, encoded: bytes) -> DecodedPicture:
        """Decode a picture that `checked` accepted.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        ...

    def match(self, text: str, picture: DecodedPicture) -> Match:
        """Compute the match maps of a text on a decoded picture.

        Raises:
            BadQuery: the text has no words.
        """
        ...


@dataclass(frozen=True)
class GroundingMatcher:
    """Computes match maps with the model of the grounding stage, as the stage compares positions and tokens.

    Attributes:
        crop: part of a picture that the model sees.
        tokenizer: turns texts into word piece ids.
        kind, special_tokens, alignment: as the grounding stage was trained.
        classes: names of the object classes of the stage relational, if the model has it.
    """

    model: GroundedModel
    crop: CentreCrop
    tokenizer: WordPieceTokenizer
    kind: Kind
    special_tokens: bool
    alignment: Alignment = "match_map"
    classes: tuple[str, ...] = ()

    @staticmethod
    def load(checkpoint: str) -> GroundingMatcher | None:
        """Load the matcher of an exported model; None if it has no grounding stage."""
        if STAGE not in [stage.name for stage in export.about(checkpoint).stages]:
            return None
        exported = export.load(checkpoint, STAGE)
        settings = exported.about.settings
        stage, image_size = config.Grounding(**settings[STAGE]), settings["model"]["image_size"]
        tokenizer = WordPieceTokenizer.of(exported.tokenizer, stage.max_tokens)
        crop = protocol.centre_crop(stage, image_size, training=False)
        labels = exported.about.vocabulary.get("relational", {}).get("classes", ())
        names = map(class_name, labels)
        classes = tuple(name for name in names if words_of(name, tokenizer.backend.encode(name)))
        return GroundingMatcher(
            exported.model, crop, tokenizer, stage.similarity, stage.special_tokens, stage.alignment, classes
        )

    @property
    def code(self) -> Code:
        """What computes a picture's position features, beside the decoder."""
        return (transforms, trunk, timm_trunk, visual_stream, heads, matching, GroundingMatcher)

    @property
    def text_code(self) -> Code:
        """What computes a word's features."""
        return (tokenization, language_stream, encoder_layout, packing, heads, matching, GroundingMatcher)

    def to(self, device: str) -> GroundingMatcher:
        """Return the matcher with its model on a device."""
        return replace(self, model=self.model.to(device))

    def fingerprint(self) -> str:
        """Return a hash of what a picture's position features depend on: the weights it passes, its crop, whose code,
        and how they are compared."""
        modules = (self.model.visual, self.model.head(GroundingHeads).visual)
        visual = self.model.visual
        parts = [*map(digest, modules), visual.heads, self.crop.resize, self.crop.crop, visual.trunk.origin, self.kind]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def text_fingerprint(self) -> str:
        """Return a hash of what a word's features depend on: the weights it passes, and its pieces."""
        modules = (self.model.language, self.model.head(GroundingHeads).language)
        configuration = architecture(self.model.language.encoder.config)
        parts = [*map(digest, modules), configuration, self.tokenizer.json, self.tokenizer.max_tokens, self.kind]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def preprocess(self, encoded: bytes) -> Pixels:
        """Return an encoded picture, decoded and cropped.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return centre_crop(encoded, self.crop.resize, self.crop.crop)

    @torch.no_grad()
    def position_features(self, pixels: PixelBatch) -> Float32[np.ndarray, "image position dim"]:
        """Return the features of each position of preprocessed pictures, row by row."""
        with arithmetic.using("float32", self._device):
            return normalised(self._positions(pixels), self.kind).cpu().numpy()

    def word_features(self, text: str) -> WordFeatures:
        """Return the features of each word of a text: the mean over its pieces.

        Raises:
            BadQuery: the text has no words.
        """
        return self.word_features_of([text])[0]

    @torch.no_grad()
    def word_features_of(self, texts: Sequence[str]) -> list[WordFeatures]:
        """Return the features of each word of several texts, which are embedded together.

        Raises:
            BadQuery: a text has no words.
        """
        with arithmetic.using("float32", self._device):
            words, W, _ = self._tokens(texts)
            return list(map(self._features, words, W))

    def _features(self, words: Sequence[Word], W: Float[Tensor, "token dim"]) -> WordFeatures:
        """Return the features of a text's words, given the embedding of each of its tokens."""
        pieces = normalised(W, self.kind).cpu().numpy()
        ranges = tuple((start, end) for start, end, _ in words)
        return WordFeatures(ranges, np.stack([pieces[tokens].mean(axis=0) for _, _, tokens in words]))

    def decode(self, encoded: bytes) -> DecodedPicture:
        """Decode and crop a picture.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return DecodedPicture(model_input(encoded, self.preprocess), self._visible(encoded))

    @torch.no_grad()
    def match(self, text: str, picture: DecodedPicture) -> Match:
        """Compute the match maps of a text on a decoded picture. The map of a word is the mean over its pieces.

        Raises:
            BadQuery: the text has no words.
        """
        with arithmetic.using("float32", self._device):
            (words,), W, valid = self._tokens([text])
            features = self._features(words, W[0]).features
            V, grid = self._positions(picture.pixels[None]), self.model.visual.trunk.grid
            maps = match_map(V[0], W[0], self.kind).T.unflatten(1, (grid.side, grid.side)).cpu().numpy()
            encoded = Encoded(V, W, valid)
            V, W, valid, *_ = pooled(encoded) if self.alignment == "pooled" else encoded
            similarity_of_text = similarity(V, W, valid, self.kind).item()
        return Match(
            tuple(
                WordMap(text[start:end], start, end, maps[tokens].mean(axis=0), own)
                for (start, end, tokens), own in zip(words, features, strict=True)
            ),
            similarity_of_text,
            picture.crop,
            grid.first / self.crop.crop,
            grid.stride / self.crop.crop,
        )

    def _positions(self, pixels: PixelBatch) -> Float[Tensor, "image position dim"]:
        images = torch.from_numpy(pixels).to(self._device)
        return self.model.head(GroundingHeads).visual(self.model.visual(images))

    def _tokens(
        self, texts: Sequence[str]
    ) -> tuple[list[list[Word]], Float[Tensor, "text token dim"], Bool[Tensor, "text token"]]:
        """Return the words of some texts, the embedding of each token, and which tokens the similarity averages over.

        Raises:
            BadQuery: a text has no words.
        """
        words = [words_of(text, self.tokenizer.backend.encode(text)) for text in texts]
        for text, own in zip(texts, words, strict=True):
            if not own:
                raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no words")
        ids, lengths = self.tokenizer.encode(texts)
        tokens = torch.from_numpy(ids[:, : lengths.max()].astype(np.int64))
        mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])
        W = self.model.head(GroundingHeads).language(self.model.language(tokens.to(self._device), mask))
        return words, W, counted_tokens(mask, self.special_tokens, self.model.language.special_tokens)

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _visible(self, encoded: bytes) -> tuple[float, float, float, float]:
        """Return the crop as fractions of the picture (`Match.crop`)."""
        width, height = size(encoded)
        left, top, right, bottom = centre_box(width, height, self.crop.resize, self.crop.crop)
        return max(0.0, left / width), max(0.0, top / height), min(1.0, right / width), min(1.0, bottom / height)
