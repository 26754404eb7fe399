"""Scene graphs as batches: an image, its objects' phrases and classes, and the relations between them a sample."""

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

    An image has any number of objects and relations, so these travel as the bytes of int32 arrays.

    Attributes:
        tokenizer: how phrases become word pieces.
        image_inputs: how the images become arrays.
        predicates, classes: how many there are, `none` (index 0) aside.
    """

    tokenizer: WordPieceTokenizer
    image_inputs: ImageInputs
    predicates: int
    classes: int
    kind: str = "scene_graphs"
    columns: tuple[str, ...] = ("id", "image", "objects", "relations")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """The table with its pictures drawn: nothing about a scene graph is random."""
        return self.image_inputs.draw(table, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """`id` and `image` of each row, and as bytes of int32 `classes` [object],
        `tokens` [object max_tokens], `lengths` [object] and `relations` [relation 3], all counted from 0.

        Raises:
            ValueError: a relation names an object that its image has not, or a class or predicate that there is not.
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
            "tokens": _bytes(np.split(tokens, ends) if rows else []),
            "lengths": _bytes(np.split(lengths, ends) if rows else []),
            "classes": _bytes([[item["class"] - 1 for item in row["objects"]] for row in rows]),
            "relations": _bytes(
                [[(one["subject"], one["predicate"] - 1, one["object"]) for one in row["relations"]] for row in rows]
            ),
        }

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> SceneGraphBatch:
        """The batch of some decoded rows, its phrases padded to the longest among them."""
        from groundray.data.batches import SceneGraphBatch  # brings torch, which decoding processes never load

        classes = _ragged(arrays["classes"])
        counts = np.array([len(of_image) for of_image in classes], dtype=np.int64)
        relations = [of_image.reshape(-1, 3) for of_image in _ragged(arrays["relations"])]
        first = np.repeat(np.cumsum(counts) - counts, [len(of_image) for of_image in relations])
        triplets = np.concatenate([np.zeros((0, 3), np.int32), *relations]).astype(np.int64)
        return SceneGraphBatch.of(
            ids=arrays["id"].tolist(),
            images=arrays["image"],
            tokens=_joined(_ragged(arrays["tokens"])).reshape(-1, self.tokenizer.max_tokens),
            lengths=_joined(_ragged(arrays["lengths"])),
            image=np.repeat(np.arange(len(counts)), counts),
            classes=_joined(classes).astype(np.int64),
            pairs=triplets[:, [0, 2]] + first[:, None],
            predicate=triplets[:, 1],
        )

    def _check(self, row: Mapping[str, Any]) -> None:
        count = len(row["objects"])
        again = "run `python -m groundray.prepare visual-genome` again"
        for item in row["objects"]:
            if not 1 <= item["class"] <= self.classes:
                raise ValueError(
                    f"image {row['id']} has an object of class {item['class']}: expected 1 to {self.classes}; {again}"
                )
        for one in row["relations"]:
            if not (0 <= one["subject"] < count and 0 <= one["object"] < count):
                raise ValueError(
                    f"image {row['id']} relates objects {one['subject']} and {one['object']}: it has {count} objects, "
                    f"counted from 0; {again}"
                )
            if not 1 <= one["predicate"] <= self.predicates:
                raise ValueError(
                    f"image {row['id']} has predicate {one['predicate']}: expected 1 to {self.predicates}; {again}"
                )


def _bytes(parts: Sequence[Any]) -> npt.NDArray[Any]:
    """Each array as the bytes of its int32 numbers."""
    packed = np.empty(len(parts), dtype=object)
    packed[:] = [np.asarray(part, dtype=np.int32).tobytes() for part in parts]
    return packed


def _ragged(packed: npt.NDArray[Any]) -> list[npt.NDArray[np.int32]]:
    """What `_bytes` packed, each array flat."""
    return [np.frombuffer(part, dtype=np.int32) for part in packed]


def _joined(parts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *parts])
