"""Captioned images as batches: an image and one of its captions a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer

from groundray.data.randomness import pick, word_of
from groundray.data.transforms import centre_crop

if TYPE_CHECKING:
    from groundray.data.batches import CaptionBatch

_CAPTION = 3  # keeps the draw of captions independent of the plan's shuffles


@dataclass(frozen=True)
class CaptionSamples:
    """Samples of kind `captions`.

    Attributes:
        tokenizer: a `tokenizers` tokenizer as JSON text (it travels to decoding processes, which need no transformers).
        max_tokens: word pieces of a caption, [CLS] and [SEP] included; longer captions lose words, never [SEP].
        resize: short side before the centre crop, in pixels.
        crop: side of the square that is left, in pixels.
        seed: of the draw of captions; None takes each image's first caption, as validation does.
    """

    tokenizer: str
    max_tokens: int
    resize: int
    crop: int
    seed: int | None = None
    kind: str = "captions"
    columns: tuple[str, ...] = ("id", "image", "captions")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """`id`, `image` and the `caption` drawn for this epoch by (seed, epoch, id)."""
        ids = table["id"].to_pylist()
        choices = table["captions"].to_pylist()
        if self.seed is None:
            chosen = [options[0] for options in choices]
        else:
            chosen = [
                options[int(pick(len(options), self.seed, _CAPTION, epoch, word_of(sample)))]
                for sample, options in zip(ids, choices, strict=True)
            ]
        return table.select(["id", "image"]).append_column("caption", pa.array(chosen, pa.string()))

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """`id`, `image` (uint8 [sample 3 crop crop]), `tokens` (int32 [sample max_tokens]) and `length` of each row."""
        images = [centre_crop(encoded.as_py(), self.resize, self.crop) for encoded in table["image"]]
        encodings = self._tokenizer.encode_batch(table["caption"].to_pylist())
        tokens = np.zeros((len(encodings), self.max_tokens), dtype=np.int32)
        for place, encoding in enumerate(encodings):
            tokens[place, : len(encoding.ids)] = encoding.ids
        return {
            "id": np.array(table["id"].to_pylist(), dtype=np.str_),
            "image": np.stack(images) if images else np.empty((0, 3, self.crop, self.crop), np.uint8),
            "tokens": tokens,
            "length": np.array([len(encoding.ids) for encoding in encodings], dtype=np.int32),
        }

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> CaptionBatch:
        """The batch of some decoded rows, padded to the longest caption among them."""
        from groundray.data.batches import CaptionBatch  # brings torch, which decoding processes never load

        return CaptionBatch.of(arrays["id"].tolist(), arrays["image"], arrays["tokens"], arrays["length"])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_tokenizer"}
