"""Batches of scene graphs: varying numbers of objects and relations, and invalid indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import SmallWorld

from groundray.data.image_inputs import CentreCrop
from groundray.data.scene_graphs import SceneGraphSamples
from groundray.data.scenes.drawing import jpeg
from groundray.data.scenes.scene import make_scene
from groundray.data.schema import arrow_schema
from groundray.data.tokenization import WordPieceTokenizer


@pytest.fixture(scope="module")
def samples(world: SmallWorld) -> SceneGraphSamples:
    tokenizer = WordPieceTokenizer((world.source / "tokenizer" / "tokenizer.json").read_text(), 10)
    return SceneGraphSamples(tokenizer, CentreCrop(32, 32), predicates=3, classes=4)


def table(*graphs: tuple[list[tuple[str, int]], list[tuple[int, int, int]]]) -> pa.Table:
    """Return rows from objects (phrase, class) and relations (subject, predicate, object)."""
    picture = jpeg(make_scene(0, "train", 0, 0))
    rows: list[dict[str, Any]] = [
        {
            "id": str(number),
            "image": picture,
            "width": 112,
            "height": 112,
            "objects": [{"phrase": phrase, "class": of} for phrase, of in objects],
            "relations": [dict(zip(("subject", "predicate", "object"), one, strict=True)) for one in relations],
        }
        for number, (objects, relations) in enumerate(graphs)
    ]
    return pa.Table.from_pylist(rows, schema=arrow_schema("scene_graphs"))


def test_objects_and_relations_are_indexed_within_the_batch(samples: SceneGraphSamples) -> None:
    rows = table(
        ([("red circle", 1), ("star", 4)], [(0, 3, 1), (1, 1, 0), (0, 2, 1)]),
        ([], []),
        ([("a", 2)], []),
        ([("square", 3), ("a blue star", 4), ("moon", 2)], [(2, 1, 0)]),
    )
    batch = samples.collate(samples.decode(samples.draw(rows, 0)))
    assert len(batch) == 4
    assert batch.image.tolist() == [0, 0, 2, 3, 3, 3]
    assert batch.classes.tolist() == [0, 3, 1, 2, 3, 1]
    assert batch.pairs.tolist() == [[0, 1], [1, 0], [0, 1], [5, 3]]
    assert batch.predicate.tolist() == [2, 0, 1, 0]
    assert batch.attention_mask.sum(dim=1).tolist() == [4, 3, 3, 3, 5, 3]
    assert batch.tokens.shape == (6, 5)


def test_batch_without_images_is_empty(samples: SceneGraphSamples) -> None:
    batch = samples.collate(samples.decode(samples.draw(table(), 0)))
    assert len(batch) == 0
    assert (batch.image.shape, batch.pairs.shape, batch.tokens.shape) == ((0,), (0, 2), (0, 0))


def test_any_slice_of_the_arrays_is_a_batch(samples: SceneGraphSamples) -> None:
    """A step's arrays are split into chunks."""
    arrays = samples.decode(
        samples.draw(table(([("star", 1)], []), ([("moon", 2), ("star", 1)], [(0, 1, 1)]), ([("moon", 2)], [])), 0)
    )
    batch = samples.collate({name: array[1:3] for name, array in arrays.items()})
    assert batch.pairs.tolist() == [[0, 1]]
    assert batch.image.tolist() == [0, 0, 1]
    assert np.array_equal(batch.classes.numpy(), [1, 0, 1])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (([("star", 1)], [(0, 1, 1)]), "image 0 relates objects 0 and 1: expected 0 to 0"),
        (([("star", 1)], [(-1, 1, 0)]), "image 0 relates objects -1 and 0"),
        (([("star", 1), ("moon", 1)], [(0, 4, 1)]), "image 0 has predicate 4: expected 1 to 3"),
        (([("star", 1), ("moon", 1)], [(0, 0, 1)]), "image 0 has predicate 0: expected 1 to 3"),
        (([("star", 5)], []), "image 0 has an object of class 5: expected 1 to 4"),
    ],
)
def test_index_out_of_range_raises(
    samples: SceneGraphSamples, graph: tuple[list[tuple[str, int]], list[tuple[int, int, int]]], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message}.*prepare visual-genome"):
        samples.decode(samples.draw(table(graph), 0))
