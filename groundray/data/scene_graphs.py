"""Batches of scene graphs: each sample is an image with its objects' phrases and classes, and their relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import ImageInputs
from groundray.data.tokenization import WordPieceTokenizer

if TYPE_CHECKING:
    from groundray.data.batches import SceneGraphBatch


@dataclass(frozen=True)
class SceneGraphSamples:
    """Samples of kind `scene_graphs`.

    An image has any number of objects and relations, so decoded rows hold these as bytes of int32 arrays.

    Attributes:
        tokenizer: turns phrases into word piece ids.
        image_inputs: how the images become arrays.
        predicates, classes: their numbers, without `none` (index 0).
    """

    tokenizer: WordPieceTokenizer
    image_inputs: ImageInputs
    predicates: int
    classes: int
    kind: str = "scene_graphs"
    columns: tuple[str, ...] = ("id", "image", "objects", "relations")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the random choices of its images. Nothing else about a scene graph is random."""
        return self.image_inputs.draw(table, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id` and `image` of each row, and as bytes of int32 arrays `classes` [object],
        `tokens` [object max_tokens], `lengths` [object] and `relations` [relation 3], all counted from 0.

        Raises:
            ValueError: an object, class or predicate does not exist.
        """
        rows = table.select(["id", "objects", "relations"]).to_pylist()
        for row in rows:
            self._check(row)
        phrases = [item["phrase"] for row in rows for item in row["objects"]]
        tokens, lengths = self.tokenizer.encode(phrases)
        ends = np.cumsum([len(row["objects"]) for row in rows], dtype=np.int64)[:-1]
        return {
            "id": np.array([row["id"] for row in rows], dtype=np.str_),
            "image": self.image_inputs.arrays(table),
            "tokens": _pack(np.split(tokens, ends) if rows else []),
            "lengths": _pack(np.split(lengths, ends) if rows else []),
            "classes": _pack([[item["class"] - 1 for item in row["objects"]] for row in rows]),
            "relations": _pack(
                [
                    [(item["subject"], item["predicate"] - 1, item["object"]) for item in row["relations"]]
                    for row in rows
                ]
            ),
        }

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> SceneGraphBatch:
        """Return the batch of decoded rows, padded to the longest phrase."""
        from groundray.data.batches import SceneGraphBatch  # imports torch, which decoding processes do not load

        classes = _unpack(arrays["classes"])
        counts = np.array([len(of_image) for of_image in classes], dtype=np.int64)
        relations = [of_image.reshape(-1, 3) for of_image in _unpack(arrays["relations"])]
        first = np.repeat(np.cumsum(counts) - counts, [len(of_image) for of_image in relations])
        triplets = np.concatenate([np.zeros((0, 3), np.int32), *relations]).astype(np.int64)
        return SceneGraphBatch.of(
            ids=arrays["id"].tolist(),
            images=arrays["image"],
            tokens=_concatenate(_unpack(arrays["tokens"])).reshape(-1, self.tokenizer.max_tokens),
            lengths=_concatenate(_unpack(arrays["lengths"])),
            image=np.repeat(np.arange(len(counts)), counts),
            classes=_concatenate(classes).astype(np.int64),
            pairs=triplets[:, [0, 2]] + first[:, None],
            predicate=triplets[:, 1],
        )

    def _check(self, row: Mapping[str, Any]) -> None:
        count = len(row["objects"])
        repair = "run `python -m groundray.prepare visual-genome` again"
        for item in row["objects"]:
            if not 1 <= item["class"] <= self.classes:
                raise ValueError(
                    f"image {row['id']} has an object of class {item['class']}: expected 1 to {self.classes}; {repair}"
                )
        for item in row["relations"]:
            if not (0 <= item["subject"] < count and 0 <= item["object"] < count):
                raise ValueError(
                    f"image {row['id']} relates objects {item['subject']} and {item['object']}: "
                    f"expected 0 to {count - 1}; {repair}"
                )
            if not 1 <= item["predicate"] <= self.predicates:
                raise ValueError(
                    f"image {row['id']} has predicate {item['predicate']}: expected 1 to {self.predicates}; {repair}"
                )


def _pack(arrays: Sequence[Any]) -> npt.NDArray[Any]:
    """Return the bytes of each array as int32."""
    packed = np.empty(len(arrays), dtype=object)
    packed[:] = [np.asarray(array, dtype=np.int32).tobytes() for array in arrays]
    return packed


def _unpack(packed: npt.NDArray[Any]) -> list[npt.NDArray[np.int32]]:
    """Return the arrays that `_pack` packed, flattened."""
    return [np.frombuffer(content, dtype=np.int32) for content in packed]


def _concatenate(arrays: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *arrays])
