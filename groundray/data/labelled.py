"""Batches of labelled images: each sample is an image with its class, or with the classes of all its objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import ImageInputs

if TYPE_CHECKING:
    from groundray.data.batches import LabelledBatch, MultiLabelledBatch


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


@dataclass(frozen=True)
class ObjectClassSamples:
    """Samples of kind `scene_graphs` as images with any number of classes, those of their objects.

    Nothing else of a scene graph is read: no phrase, which has an object's attribute, and no relation.

    Attributes:
        image_inputs: how the images become arrays.
        classes: number of classes, without `none` (index 0).
    """

    image_inputs: ImageInputs
    classes: int
    kind: str = "scene_graphs"
    columns: tuple[str, ...] = ("id", "image", "objects")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the random choices of its images."""
        return self.image_inputs.draw(table, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id`, `image` and `labels` (bool, [row, class]) of each row.

        Raises:
            ValueError: an object's class does not exist.
        """
        ids, objects = table["id"].to_pylist(), table["objects"].to_pylist()
        labels = np.zeros((len(ids), self.classes), dtype=np.bool_)
        for id, row, of_image in zip(ids, labels, objects, strict=True):
            for item in of_image:
                if not 1 <= item["class"] <= self.classes:
                    raise ValueError(
                        f"image {id} has an object of class {item['class']}: expected 1 to {self.classes}; "
                        "run `python -m groundray.prepare visual-genome` again"
                    )
                row[item["class"] - 1] = True
        return {"id": np.array(ids, dtype=np.str_), "image": self.image_inputs.arrays(table), "labels": labels}

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> MultiLabelledBatch:
        """Return the batch of decoded rows."""
        from groundray.data.batches import MultiLabelledBatch  # imports torch, which decoding processes do not load

        return MultiLabelledBatch.of(arrays["id"].tolist(), arrays["image"], arrays["labels"])
