"""Labelled images: which part of an image is seen at which visit."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import SmallWorld
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from groundray.data.image_inputs import CentreCrop, RandomCrop
from groundray.data.labelled import LabelledSamples, ObjectClassSamples
from groundray.data.row_groups import read_rows
from groundray.data.scenes.scene import make_scene
from groundray.data.schema import Dataset
from groundray.data.transforms import ASPECTS, _part, random_crop

CROP = RandomCrop(crop=112, area=(0.08, 1.0), flip=True, seed=7)
SAMPLES = LabelledSamples(CROP, classes=12)


@pytest.fixture(scope="module")
def table(world: SmallWorld) -> pa.Table:
    dataset = Dataset.open(str(world.shards / "objects" / "train"), "labelled_images")
    return read_rows(dataset, np.arange(12), SAMPLES.columns)


def images(table: pa.Table, samples: LabelledSamples, epoch: int) -> np.ndarray:
    return samples.decode(samples.draw(table, epoch))["image"]


def test_crop_is_fixed_by_epoch_and_sample(table: pa.Table) -> None:
    first = images(table, SAMPLES, 0)
    assert first.shape == (12, 3, 112, 112)
    assert np.array_equal(first, images(table, SAMPLES, 0))
    assert np.array_equal(
        first[::-1], images(table.take(list(range(11, -1, -1))), SAMPLES, 0)
    )  # independent of the other rows
    assert not any(np.array_equal(*pair) for pair in zip(first, images(table, SAMPLES, 1), strict=True))
    other = replace(SAMPLES, image_inputs=replace(CROP, seed=8))
    assert not any(np.array_equal(*pair) for pair in zip(first, images(table, other, 0), strict=True))


def test_validation_uses_the_centre_crop(table: pa.Table) -> None:
    still = replace(SAMPLES, image_inputs=CentreCrop(112, 112))
    assert np.array_equal(images(table, still, 0), images(table, still, 1))


def test_batch_has_labels_and_images(table: pa.Table) -> None:
    batch = SAMPLES.collate(SAMPLES.decode(SAMPLES.draw(table, 0)))
    assert batch.labels.tolist() == table["label"].to_pylist()
    assert batch.ids == tuple(table["id"].to_pylist())


def test_label_without_class_raises(table: pa.Table) -> None:
    fewer = replace(SAMPLES, classes=1)
    rows = table.take([11])
    with pytest.raises(ValueError, match=r"image circle/.* has label \d+: expected 0 to 0"):
        fewer.decode(fewer.draw(rows, 0))


def test_the_labels_of_a_scene_graph_are_the_classes_of_its_objects(world: SmallWorld) -> None:
    dataset = Dataset.open(str(world.shards / "scene_graphs" / "train"), "scene_graphs")
    names = [synset.removesuffix(".n.01") for synset in dataset.vocabulary["classes"][1:]]
    samples = ObjectClassSamples(CentreCrop(112, 112), len(names))
    table = read_rows(dataset, np.arange(30), samples.columns)
    batch = samples.collate(samples.decode(samples.draw(table, 0)))
    shown = [{names[number] for number in of_image.nonzero()[:, 0].tolist()} for of_image in batch.labels]
    assert shown == [
        {item.noun for item in make_scene(0, "train", int(id), int(id)).objects} for id in table["id"].to_pylist()
    ]
    assert {len(of_image) for of_image in shown} >= {1, 2, 3}


@pytest.mark.parametrize("number", [0, 2])
def test_an_object_without_class_raises(world: SmallWorld, number: int) -> None:
    dataset = Dataset.open(str(world.shards / "scene_graphs" / "train"), "scene_graphs")
    samples = ObjectClassSamples(CentreCrop(112, 112), classes=1)
    row = read_rows(dataset, np.arange(1), samples.columns).to_pylist()[0]
    row["objects"] = [{"phrase": "a", "class": 1}, {"phrase": "b", "class": number}]
    with pytest.raises(ValueError, match=rf"image {row['id']} has an object of class {number}: expected 1 to 1"):
        samples.decode(pa.Table.from_pylist([row]))


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 2**64 - 1))
def test_random_part_lies_in_the_image(width: int, height: int, least: float, rest: float, key: int) -> None:
    most = least + rest * (1 - least)
    left, top, wide, tall = _part(width, height, (least, most), key)
    assert min(left, top) >= 0
    assert left + wide <= width * (1 + 1e-9)
    assert top + tall <= height * (1 + 1e-9)
    assert ASPECTS[0] - 1e-9 <= wide / tall <= ASPECTS[1] + 1e-9
    assert wide * tall <= width * height * (1 + 1e-9)


def test_random_parts_have_the_requested_area_fractions() -> None:
    shares = [wide * tall / 10_000 for key in range(400) for _, _, wide, tall in [_part(100, 100, (0.2, 0.6), key)]]
    assert min(shares) > 0.2 - 1e-9
    assert max(shares) < 0.6 + 1e-9
    assert np.mean(shares) == pytest.approx(0.4, abs=0.02)


def test_half_of_the_crops_are_mirrored() -> None:
    """The crop is the whole of an image that is dark on the left."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    crops = [random_crop(out.getvalue(), 16, (0.99, 1.0), flip=True, key=key) for key in range(200)]
    mirrored = sum(crop[0, 0, 0] > crop[0, 0, -1] for crop in crops)
    assert 70 < mirrored < 130
    assert not any(
        crop[0, 0, 0] > crop[0, 0, -1]
        for key in range(50)
        for crop in [random_crop(out.getvalue(), 16, (0.99, 1.0), flip=False, key=key)]
    )
