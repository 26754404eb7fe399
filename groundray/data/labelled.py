"""Batches of labelled images: each sample is an image with its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import ImageInputs

if TYPE_CHECKING:
    from groundray.data.batches import LabelledBatch


@dataclass(frozen=True)
class LabelledSamples:
    """Samples of kind `labelled_images`.

    Attributes:
        image_inputs: how the images become arrays.
        classes: number of classes.
    """

    image_inputs: ImageInputs
    classes: int
    kind: str = "labelled_images"
    columns: tuple[str, ...] = ("id", "image", "label")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the random choices of its images."""
        return self.image_inputs.draw(table, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id`, `image` and `label` (int64) of each row.

        Raises:
            ValueError: a label is not the index of a class.
        """
        labels = table["label"].to_numpy().astype(np.int64)
        wrong = (labels < 0) | (labels >= self.classes)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"image {table['id'][row].as_py()} has label {labels[row]}: expected 0 to {self.classes - 1}; "
                "run `python -m groundray.prepare image-folder` again"
            )
        ids = np.array(table["id"].to_pylist(), dtype=np.str_)
        return {"id": ids, "image": self.image_inputs.arrays(table), "label": labels}

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> LabelledBatch:
        """Return the batch of decoded rows."""
        from groundray.data.batches import LabelledBatch  # imports torch, which decoding processes do not load

        return LabelledBatch.of(arrays["id"].tolist(), arrays["image"], arrays["label"])
