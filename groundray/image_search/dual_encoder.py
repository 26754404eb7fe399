"""Search and match maps with a dual encoder of transformers, such as CLIP or SigLIP (`model/two_towers.py`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image
from tokenizers import Tokenizer

from groundray import arithmetic
from groundray.data import tokenization
from groundray.data.image_decoder import decode, size
from groundray.data.tokenization import WordPieceTokenizer, words_of
from groundray.image_search.errors import BadQuery
from groundray.image_search.explain import DecodedPicture, Match, WordFeatures, WordMap
from groundray.image_search.towers import Code, PixelBatch, Pixels
from groundray.image_search.uploads import model_input
from groundray.model import two_towers
from groundray.model.two_towers import TwoTowers
from groundray.model.weights import architecture, digest

SHORT_SIDE = 2048  # pixels that a reduced JPEG keeps: below twice of it, the model's processor gets the whole picture
LONGEST = 32  # times the short side of a picture, of which a processor keeps the middle
TEMPLATE = "a photo of a {}."  # CLIP's, around a word


@dataclass(frozen=True)
class DualEncoderTowers:
    """The towers of a dual encoder, whose vectors are its own: `get_image_features` and `get_text_features`.

    Attributes:
        name: name of the model's folder, or on its hub.
        stages: none: groundray did not train it.
    """

    name: str
    towers: TwoTowers
    stages: tuple[str, ...] = ()

    @staticmethod
    def load(checkpoint: str) -> DualEncoderTowers:
        """Load a dual encoder from a folder, a URL or a name on a model hub.

        Raises:
            ValueError: as `TwoTowers.load`.
        """
        name = checkpoint if two_towers.is_hub_name(checkpoint) else PurePosixPath(checkpoint).name
        return DualEncoderTowers(name, TwoTowers.load(checkpoint))

    @property
    def kind(self) -> str:
        """transformers' type of the model, such as `clip`."""
        return self.towers.kind

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self._width

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer of texts, with truncation."""
        return self._pieces.backend

    @property
    def code(self) -> Code:
        """What computes a picture's vector, beside the decoder."""
        return (two_towers, preprocessed, without_ends, DualEncoderTowers)

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """The image processor's settings."""
        return {"kind": self.kind, "processor": json.loads(self.towers.processor.to_json_string())}

    def to(self, device: str) -> DualEncoderTowers:
        """Return the towers with their model on a device."""
        return replace(self, towers=self.towers.to(device))

    def fingerprint(self) -> str:
        """Return a hash of what a picture's vector depends on: the image tower's weights and configuration, and the
        image processor."""
        configuration = architecture(self.towers.model.config.vision_config)
        parts = [*map(digest, self.towers.image_modules), self.kind, configuration]
        parts.append(self.towers.processor.to_json_string())
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def preprocess(self, encoded: bytes) -> Float32[np.ndarray, "3 row column"]:
        """Return an encoded picture, decoded, and resized, cropped and normalised by the model's image processor.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return preprocessed(encoded, self.towers)

    def embed_pixels(self, pixels: PixelBatch) -> Float32[np.ndarray, "image dim"]:
        """Return a vector for each preprocessed picture."""
        with arithmetic.using("float32", self.towers.model.device):
            return self.towers.image_vectors(pixels).cpu().numpy()

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "text dim"]:
        """Return a vector for each text. Word pieces beyond the model's maximum are ignored."""
        with arithmetic.using("float32", self.towers.model.device):
            return self.towers.text_vectors(texts).cpu().numpy()

    def check_text(self, text: str) -> None:
        """Raise BadQuery if a text has no words."""
        if self._pieces.is_empty(text):
            raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no words")

    @cached_property
    def _width(self) -> int:
        return self.embed_texts([""]).shape[1]

    @cached_property
    def _pieces(self) -> WordPieceTokenizer:
        return WordPieceTokenizer.of(self.towers.tokenizer, self.towers.longest)


@dataclass(frozen=True)
class DualEncoderMatcher:
    """Computes match maps with a dual encoder: cosines of position vectors (`TwoTowers.position_vectors`) and texts.

    The model gives one vector for a text, so that each word is embedded by itself, as `a photo of a WORD.` if the model
    knows these words. A text of several words has a first map of the whole, by the vector that it is searched with.
    """

    towers: DualEncoderTowers

    @property
    def code(self) -> Code:
        """What computes a picture's position features, beside the decoder."""
        return (*self.towers.code, DualEncoderMatcher)

    @property
    def text_code(self) -> Code:
        """What computes a word's features."""
        return (two_towers, tokenization, DualEncoderMatcher)

    @property
    def classes(self) -> tuple[str, ...]:
        """None: the model was trained on texts alone."""
        return ()

    def to(self, device: str) -> DualEncoderMatcher:
        """Return the matcher with its model on a device."""
        return replace(self, towers=self.towers.to(device))

    def fingerprint(self) -> str:
        """Return a hash of what a picture's position features depend on, beside the code."""
        return self.towers.fingerprint()

    def text_fingerprint(self) -> str:
        """Return a hash of what a word's features depend on: the model's weights, the text tower's configuration, and
        its pieces."""
        model = self.towers.towers.model
        configuration = architecture(model.config.get_text_config())
        parts = [digest(model), configuration, self.towers.backend.to_str(), self._template]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def preprocess(self, encoded: bytes) -> Pixels:
        """Return an encoded picture as the model takes it.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        return self.towers.preprocess(encoded)

    def position_features(self, pixels: PixelBatch) -> Float32[np.ndarray, "image position dim"]:
        """Return the vector of each position of preprocessed pictures, row by row."""
        with arithmetic.using("float32", self.towers.towers.model.device):
            return self.towers.towers.position_vectors(pixels).positions.flatten(1, 2).cpu().numpy()

    def word_features(self, text: str) -> WordFeatures:
        """Return the vectors of a text's words, and before them that of the whole text if it has several.

        Raises:
            BadQuery: the text has no words.
        """
        return self.word_features_of([text])[0]

    def word_features_of(self, texts: Sequence[str]) -> list[WordFeatures]:
        """Return what `word_features` returns of each of several texts.

        Raises:
            BadQuery: a text has no words.
        """
        return [self._word_features(text) for text in texts]

    def _word_features(self, text: str) -> WordFeatures:
        ranges = [(start, end) for start, end, _ in words_of(text, self.towers.backend.encode(text))]
        if not ranges:
            raise BadQuery(f"text: expected a word or a phrase, got {text!r}, which has no words")
        sentences = [self._template.format(text[start:end]) for start, end in ranges]
        if len(ranges) > 1:
            ranges, sentences = [(ranges[0][0], ranges[-1][1]), *ranges], [text, *sentences]
        return WordFeatures(tuple(ranges), self.towers.embed_texts(sentences))

    def decode(self, encoded: bytes) -> DecodedPicture:
        """Decode and preprocess a picture.

        Raises:
            UnusableImage: the picture is damaged or cannot be shown.
        """
        pixels = model_input(encoded, self.preprocess)
        return DecodedPicture(pixels, visible_part(self.towers.towers.processor, *size(encoded)))

    def match(self, text: str, picture: DecodedPicture) -> Match:
        """Compute the match maps of a text on a decoded picture.

        Raises:
            BadQuery: the text has no words.
        """
        words, model = self.word_features(text), self.towers.towers
        with arithmetic.using("float32", model.model.device):
            found = model.position_vectors(picture.pixels[None])
        maps = found.positions[0].cpu().numpy() @ words.features.T
        whole = found.whole[0].cpu().numpy() @ self.towers.embed_texts([text])[0]
        rows = maps.shape[0]
        patch, side = getattr(model.model.config.vision_config, "patch_size", None), picture.pixels.shape[-1]
        step = patch / side if patch else 1 / rows
        return Match(
            tuple(
                WordMap(text[start:end], start, end, maps[..., word], words.features[word])
                for word, (start, end) in enumerate(words.ranges)
            ),
            float(whole),
            picture.crop,
            step / 2,
            step,
        )

    @cached_property
    def _template(self) -> str:
        return TEMPLATE if two_towers.known(self.towers.towers.tokenizer, [TEMPLATE.format("")])[0] else "{}"


def preprocessed(encoded: bytes, towers: TwoTowers) -> Float32[np.ndarray, "3 row column"]:
    """Return an encoded picture as a dual encoder takes it.

    Raises:
        UnusableImage: the picture is damaged or cannot be shown.
    """
    return towers.pixels([without_ends(decode(encoded, SHORT_SIDE), towers.processor)])[0]


def without_ends(picture: Image.Image, processor: Any) -> Image.Image:
    """Return a very long picture without the ends that a processor scales and then crops away; another as it is.

    Of 20,000 x 1 pixels, a picture of some hundred bytes, the processor would make 4,480,000 x 224: gigabytes.
    """
    if not (processor.do_resize and processor.do_center_crop and processor.size.get("shortest_edge")):
        return picture
    most = LONGEST * min(picture.size)
    # an even number of pixels is cut off, so that the middle stays where it is
    left, top = (max(0, (side - most + 1) // 2) for side in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top)) if left or top else picture


def visible_part(processor: Any, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the part of a picture that a model's image processor keeps: left, top, right, bottom, as fractions of the
    picture (`Match.crop`)."""
    wide, tall = width, height
    if processor.do_resize:
        if edge := processor.size.get("shortest_edge"):
            wide, tall = (int(edge * side / min(width, height)) for side in (width, height))
        else:
            wide, tall = processor.size["width"], processor.size["height"]
    if not processor.do_center_crop:
        return 0.0, 0.0, 1.0, 1.0
    across, down = processor.crop_size["width"], processor.crop_size["height"]
    left, top = int((wide - across) / 2), int((tall - down) / 2)
    return left / wide, top / tall, (left + across) / wide, (top + down) / tall
