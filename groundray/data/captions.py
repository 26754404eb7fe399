"""Batches of captioned images: each sample is an image with one of its captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import ImageInputs, stacked
from groundray.data.tokenization import WordPieceTokenizer
from groundray.rng import hash_name, pick

if TYPE_CHECKING:
    from groundray.data.batches import CaptionBatch

_CAPTION = 3  # keeps the draw of captions independent of the plan's shuffles


@dataclass(frozen=True)
class CaptionSamples:
    """Samples of kind `captions`.

    Attributes:
        tokenizer: turns captions into word piece ids.
        image_inputs: how the images become arrays.
        seed: seed of the draw of captions; None takes each image's first caption, as validation does.
        queries: captions of an image, tokens of a caption and dimensions of the queries that are stored of frozen
            streams (`training/keys.py`), if they are read.
    """

    tokenizer: WordPieceTokenizer
    image_inputs: ImageInputs
    seed: int | None = None
    queries: tuple[int, int, int] | None = None
    kind: str = "captions"
    columns: tuple[str, ...] = ("id", "image", "captions")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return `id`, `image` and the epoch's `caption`, drawn by (seed, epoch, id), with its `number` for queries."""
        numbers = drawn_numbers(table, self.seed, epoch)
        drawn = table.select(["id", "image"]).append_column("caption", _captions(table, numbers))
        if self.queries:
            drawn = drawn.append_column("number", pa.array(numbers))
        return self.image_inputs.draw(drawn, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id`, `image`, `tokens` (int32 [sample max_tokens]) and `length` of each row, and its `queries`."""
        tokens, lengths = self.tokenizer.encode(table["caption"].to_pylist())
        queries = {"queries": stacked(table["queries"], self.queries[1:], "float32")} if self.queries else {}
        return {
            **queries,
            "id": np.array(table["id"].to_pylist(), dtype=np.str_),
            "image": self.image_inputs.arrays(table),
            "tokens": tokens,
            "length": lengths,
        }

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> CaptionBatch:
        """Return the batch of decoded rows, padded to the longest caption."""
        from groundray.data.batches import CaptionBatch  # imports torch, which decoding processes do not load

        names = ("image", "tokens", "length", *["queries"] * (self.queries is not None))
        return CaptionBatch.of(arrays["id"].tolist(), *(arrays[name] for name in names))


def drawn_captions(table: pa.Table, seed: int | None, epoch: int) -> pa.Array:
    """Return one of each row's `captions`, drawn by (seed, epoch, id); without a seed, the first."""
    return _captions(table, drawn_numbers(table, seed, epoch))


def drawn_numbers(table: pa.Table, seed: int | None, epoch: int) -> npt.NDArray[np.int64]:
    """Return the number of one of each row's `captions`, drawn by (seed, epoch, id); without a seed, 0."""
    if seed is None:
        return np.zeros(len(table), np.int64)
    samples = np.array([hash_name(sample) for sample in table["id"].to_pylist()], np.uint64)
    counts = np.array([len(options) for options in table["captions"].to_pylist()], np.uint64)
    return pick(counts, seed, _CAPTION, epoch, samples).astype(np.int64)


def _captions(table: pa.Table, numbers: npt.NDArray[np.int64]) -> pa.Array:
    choices = table["captions"].to_pylist()
    return pa.array([options[number] for options, number in zip(choices, numbers.tolist(), strict=True)], pa.string())
