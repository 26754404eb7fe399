"""The batches that a stream yields: named tensors, a chunk of the global batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class CaptionBatch:
    """Images and one caption each, a chunk of a global batch (possibly empty at the end of a validation epoch).

    Attributes:
        ids: the samples' ids.
        images: pixels 0-255, resized and cropped, not yet normalised.
        tokens: word piece ids, padded to the longest caption of the chunk, [CLS] and [SEP] included.
        attention_mask: True on word pieces, False on padding.
    """

    ids: tuple[str, ...]
    images: UInt8[Tensor, "sample 3 height width"]
    tokens: Int[Tensor, "sample token"]
    attention_mask: Bool[Tensor, "sample token"]

    @staticmethod
    def of(
        ids: list[str],
        images: UInt8[np.ndarray, "sample 3 height width"],
        tokens: Int[np.ndarray, "sample slot"],
        lengths: Int[np.ndarray, " sample"],
    ) -> CaptionBatch:
        """The batch of decoded rows; slots beyond the longest caption are cut off."""
        longest = int(lengths.max(initial=0))
        return CaptionBatch(
            tuple(ids),
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(tokens[:, :longest].astype(np.int64)),
            torch.from_numpy(np.arange(longest) < lengths[:, None]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str) -> CaptionBatch:
        move = {"device": device, "non_blocking": True}
        return CaptionBatch(self.ids, self.images.to(**move), self.tokens.to(**move), self.attention_mask.to(**move))
