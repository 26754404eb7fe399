"""Batches of captioned images: each sample is an image with one of its captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import ImageInputs
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
    """

    tokenizer: WordPieceTokenizer
    image_inputs: ImageInputs
    seed: int | None = None
    kind: str = "captions"
    columns: tuple[str, ...] = ("id", "image", "captions")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return `id`, `image` and the epoch's `caption`, drawn by (seed, epoch, id)."""
        drawn = table.select(["id", "image"]).append_column("caption", drawn_captions(table, self.seed, epoch))
        return self.image_inputs.draw(drawn, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id`, `image`, `tokens` (int32 [sample max_tokens]) and `length` of each row."""
        tokens, lengths = self.tokenizer.encode(table["caption"].to_pylist())
        return {
            "id": np.array(table["id"].to_pylist(), dtype=np.str_),
            "image": self.image_inputs.arrays(table),
            "tokens": tokens,
            "length": lengths,
        }

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> CaptionBatch:
        """Return the batch of decoded rows, padded to the longest caption."""
        from groundray.data.batches import CaptionBatch  # imports torch, which decoding processes do not load

        return CaptionBatch.of(arrays["id"].tolist(), arrays["image"], arrays["tokens"], arrays["length"])


def drawn_captions(table: pa.Table, seed: int | None, epoch: int) -> pa.Array:
    """Return one of each row's `captions`, drawn by (seed, epoch, id); without a seed, the first."""
    choices = table["captions"].to_pylist()
    if seed is None:
        return pa.array([options[0] for options in choices], pa.string())
    samples = np.array([hash_name(sample) for sample in table["id"].to_pylist()], np.uint64)
    drawn = pick(np.array([len(options) for options in choices], np.uint64), seed, _CAPTION, epoch, samples)
    return pa.array([options[number] for options, number in zip(choices, drawn.tolist(), strict=True)], pa.string())
