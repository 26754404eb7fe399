"""Images of one thing each as batches: an image and its class a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.randomness import mix, word_of
from groundray.data.transforms import centre_crop, random_crop, stacked

if TYPE_CHECKING:
    from groundray.data.batches import LabelledBatch

_CROP = 4  # keeps the draw of crops independent of other draws


@dataclass(frozen=True)
class LabelledSamples:
    """Samples of kind `labelled_images`.

    Attributes:
        resize: short side before the centre crop of validation, in pixels.
        crop: side of the square that the model sees, in pixels.
        classes: how many there are.
        area: least and largest share of the image that a training crop takes.
        flip: whether half of the training crops are mirrored.
        seed: of the crops; None crops the centre, as validation does.
    """

    resize: int
    crop: int
    classes: int
    area: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    seed: int | None = None
    kind: str = "labelled_images"
    columns: tuple[str, ...] = ("id", "image", "label")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """`id`, `image`, `label` and the `crop` of this epoch, a key that (seed, epoch, id) fixes."""
        seed = self.seed or 0
        keys = [int(mix(seed, _CROP, epoch, word_of(sample))) for sample in table["id"].to_pylist()]
        return table.append_column("crop", pa.array(keys, pa.uint64()))

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """`id`, `image` (uint8 [sample 3 crop crop]) and `label` (int64) of each row.

        Raises:
            ValueError: a label is of no class.
        """
        labels = table["label"].to_numpy().astype(np.int64)
        wrong = (labels < 0) | (labels >= self.classes)
        if wrong.any():
            place = int(wrong.argmax())
            raise ValueError(
                f"image {table['id'][place].as_py()} has label {labels[place]}: expected 0 to {self.classes - 1}; "
                "run `python -m groundray.prepare image-folder` again"
            )
        images = stacked(
            (
                self._pixels(encoded.as_py(), key.as_py())
                for encoded, key in zip(table["image"], table["crop"], strict=True)
            ),
            self.crop,
        )
        return {"id": np.array(table["id"].to_pylist(), dtype=np.str_), "image": images, "label": labels}

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> LabelledBatch:
        """The batch of some decoded rows."""
        from groundray.data.batches import LabelledBatch  # brings torch, which decoding processes never load

        return LabelledBatch.of(arrays["id"].tolist(), arrays["image"], arrays["label"])

    def _pixels(self, encoded: bytes, key: int) -> npt.NDArray[np.uint8]:
        if self.seed is None:
            return centre_crop(encoded, self.resize, self.crop)
        return random_crop(encoded, self.crop, self.area, self.flip, key)
