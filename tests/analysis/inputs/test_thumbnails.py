"""Small pictures of the images of a pool, by row number."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
from conftest import SmallWorld
from PIL import Image

from groundray.analysis.inputs.thumbnails import SIDE, thumbnails
from groundray.data.schema import Dataset


def test_pictures_are_those_of_the_rows_in_the_order_asked_for(world: SmallWorld) -> None:
    images = Dataset.open(str(world.shards / "captions" / "val"), "captions")
    tables = [pq.read_table(world.shards / "captions" / "val" / shard.file) for shard in images.shards]
    encoded = [one for table in tables for one in table["image"].to_pylist()]
    rows = [images.rows - 1, 0, 7, 0]
    found = thumbnails(images, rows)
    assert found[1] == found[3]
    for row, content in zip(rows, found, strict=True):
        small, whole = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(encoded[row])).convert("RGB")
        assert max(small.size) <= SIDE
        whole.thumbnail((SIDE, SIDE))
        assert np.abs(np.asarray(small, float) - np.asarray(whole, float)).mean() < 6  # of 255: JPEG
    assert thumbnails(images, []) == []
