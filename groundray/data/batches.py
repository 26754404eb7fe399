"""The batches that a stream yields: named tensors, a chunk of the global batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

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

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str) -> CaptionBatch:
        move = {"device": device, "non_blocking": True}
        return CaptionBatch(
            self.ids, self.images.to(**move), self.tokens.to(**move), self.attention_mask.to(**move)
        )
