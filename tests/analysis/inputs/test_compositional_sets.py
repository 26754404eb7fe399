"""Readers of compositional sets, on files with the fields of the published ones, and the scores of their captions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from analysis.two_towers import write_two_towers
from PIL import Image

from groundray.analysis.inputs.compositional_scores import score_set
from groundray.analysis.inputs.compositional_sets import read_sets
from groundray.analysis.inputs.dual_encoder import PretrainedEncoder, scores
from groundray.data.image_decoder import UnusableImage, decode

SUGAR = {"filename": "1.png", "caption": "red fruit", "negative_caption": "white fruit"}
BOX = {"bbox_x": 2, "bbox_y": 3, "bbox_w": 10, "bbox_h": 5}
RELATION = {"image_path": "1.png", **BOX, "true_caption": "the horse", "false_caption": "the bear"}
VSR = {"image": "1.png", "image_link": "", "caption": "red horse", "label": 1, "relation": "on", "subj": "", "obj": ""}
GROUND = {"id": 0, "image_0": "1", "image_1": "2", "caption_0": "red horse", "caption_1": "horse red"}


def picture(number: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with images 1.png to 4.png in images/."""
    (tmp_path / "images").mkdir()
    for number in range(1, 5):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    return tmp_path


def lines(*entries: Any) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def test_sugarcrepe_has_a_file_for_each_category(folder: Path) -> None:
    (folder / "add_att.json").write_text(json.dumps({"0": SUGAR, "1": {**SUGAR, "filename": "2.png"}}))
    (folder / "swap_obj.json").write_text(json.dumps({"0": SUGAR}))
    (folder / "more.json").write_text("{}")
    (some,) = read_sets([f"sugarcrepe={folder}"])
    assert [(item.category, item.captions) for item in some.items] == [
        *[("add_att", ("red fruit", "white fruit"))] * 2,
        ("swap_obj", ("red fruit", "white fruit")),
    ]
    assert some.items[1].images[0].read() == picture(2)
    assert some.items[1].where.endswith("add_att.json entry 1")
    assert some.notes == ("sugarcrepe/more.json: not read",)


def test_aro_cuts_the_box_and_orders_have_many_captions(folder: Path) -> None:
    (folder / "visual_genome_relation.json").write_text(json.dumps([{**RELATION, "relation_name": "on"}]))
    attribution = {**RELATION, "attributes": ["red", "white"]}
    (folder / "visual_genome_attribution.json").write_text(json.dumps([attribution]))
    order = {"image": "val2014/1.png", "caption_options": ["a horse", "horse a", "a a"]}
    (folder / "coco_order.json").write_text(json.dumps([order]))
    (folder / "images" / "val2014").mkdir()
    (folder / "images" / "1.png").rename(folder / "images" / "val2014" / "1.png")
    (folder / "1.png").write_bytes(picture(1))
    relation, attributes, orders = read_sets([f"aro={folder}"])
    assert (relation.items[0].category, attributes.items[0].category) == ("on", "red_white")
    assert relation.items[0].captions == ("the horse", "the bear")
    cut, whole = (decode(encoded) for encoded in (relation.items[0].images[0].read(), picture(1)))
    assert cut.tobytes() == whole.crop((2, 3, 12, 8)).tobytes()
    assert orders.items[0].captions == ("a horse", "horse a", "a a")
    assert orders.items[0].images[0].read() == picture(1)


def test_winoground_is_read_from_json_lines_and_from_parquet(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "examples.jsonl").write_text(lines({**GROUND, "collapsed_tag": "Object"}))
    (folder / "images").rename(folder / "data" / "images")
    (some,) = read_sets([f"winoground={folder}"])
    assert some.task == "pairs"
    assert (some.items[0].category, some.items[0].captions) == ("Object", ("red horse", "horse red"))
    assert [one.read() for one in some.items[0].images] == [picture(1), picture(2)]
    cells = {f"image_{at}": [{"bytes": picture(n + at), "path": None} for n in (1, 3)] for at in (0, 1)}
    table = pa.table({**cells, "caption_0": ["a b", "c d"], "caption_1": ["b a", "d c"], "collapsed_tag": ["Both"] * 2})
    hub = folder / "hub" / "data"
    hub.mkdir(parents=True)
    pq.write_table(table, hub / "test-00000-of-00001.parquet", row_group_size=1)
    (some,) = read_sets([f"winoground={hub.parent}"])
    read = [[one.read() for one in item.images] for item in some.items]
    assert read == [[picture(1), picture(2)], [picture(3), picture(4)]]
    assert [item.captions for item in some.items] == [("a b", "b a"), ("c d", "d c")]


def test_vsr_reads_its_test_split_where_there_is_one(folder: Path) -> None:
    (folder / "dev.jsonl").write_text(lines(VSR))
    (some,) = read_sets([f"vsr={folder}"])
    assert [(item.is_true, item.category) for item in some.items] == [(True, "on")]
    (folder / "test.jsonl").write_text(lines({**VSR, "label": 0}, VSR))
    (some,) = read_sets([f"vsr={folder}"])
    assert [item.is_true for item in some.items] == [False, True]
    assert some.notes == ("vsr/dev.jsonl: not read",)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({**SUGAR, "caption": 3}, "entry 1: expected text in caption, got 3; its fields are filename, caption"),
        ({"filename": "1.png", "caption": "a", "negative": "b"}, "expected text in negative_caption, got nothing"),
        ("text", "entry 1: expected an object, got 'text'"),
        ({**SUGAR, "caption": " "}, "expected text in caption, got ' '"),
    ],
)
def test_malformed_entries_are_counted_and_named(folder: Path, broken: Any, message: str) -> None:
    (folder / "add_att.json").write_text(json.dumps([SUGAR, broken]))
    (some,) = read_sets([f"sugarcrepe={folder}"])
    assert (len(some.items), some.left_out) == (1, {"malformed": 1})
    assert message in ": ".join(some.problems[0])
    (folder / "add_att.json").write_text(json.dumps([broken]))
    with pytest.raises(ValueError, match="--set sugarcrepe: expected usable entries, got none"):
        read_sets([f"sugarcrepe={folder}"])


@pytest.mark.parametrize(
    ("name", "file", "entry", "message"),
    [
        ("vsr", "test.jsonl", {**VSR, "label": "true"}, "line 2: expected 0 or 1 in label, got 'true'"),
        ("winoground", "examples.jsonl", {**GROUND, "caption_1": None}, "expected text in caption_1, got nothing"),
        ("aro", "coco_order.json", {"image": "1.png", "caption_options": ["a"]}, "at least two texts"),
        ("aro", "coco_order.json", {"image": "1.png", "caption_options": "a"}, "a list of texts in caption_options"),
        ("aro", "visual_genome_relation.json", {**RELATION, "relation_name": "on", "bbox_w": 0}, "at least one pixel"),
        ("aro", "visual_genome_relation.json", {**RELATION, "relation_name": "on", "bbox_x": "x"}, "a whole number"),
        ("aro", "visual_genome_attribution.json", RELATION, "expected a list of texts in attributes, got nothing"),
    ],
)
def test_each_set_names_what_an_entry_lacks(folder: Path, name: str, file: str, entry: Any, message: str) -> None:
    good = {
        "vsr": VSR,
        "winoground": GROUND,
        "coco_order.json": {"image": "1.png", "caption_options": ["a", "b"]},
        "visual_genome_relation.json": {**RELATION, "relation_name": "on"},
        "visual_genome_attribution.json": {**RELATION, "attributes": ["a", "b"]},
    }
    both = [good.get(name) or good[file], entry]
    (folder / file).write_text(lines(*both) if file.endswith("l") else json.dumps(both))
    (some,) = read_sets([f"{name}={folder}"])
    assert some.left_out.total() == 1
    assert message in ": ".join(some.problems[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("crepe=.", "a name of sugarcrepe, aro, winoground, vsr"),
        ("sugarcrepe", "expected NAME=FOLDER"),
        ("sugarcrepe=nowhere", "--set sugarcrepe: expected add_obj.json"),
    ],
)
def test_unknown_sets_and_empty_folders_are_refused(given: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_sets([given])


def test_files_that_are_not_json_are_named(folder: Path) -> None:
    (folder / "add_att.json").write_text("{")
    with pytest.raises(ValueError, match=r"add_att\.json: expected JSON"):
        read_sets([f"sugarcrepe={folder}"])


def test_scores_are_those_of_one_entry_at_a_time(folder: Path) -> None:
    """With the pictures of the set, a blank one, and all others; in batches of any size."""
    entries = [
        {"image": f"{number}.png", "caption_options": ["red horse", "a horse of fruit", "the bear"][: 2 + number % 2]}
        for number in (1, 2, 1, 3, 4)
    ]
    (folder / "coco_order.json").write_text(json.dumps(entries))
    (some,) = read_sets([f"aro={folder}"])
    encoder = PretrainedEncoder.load("clip", str(write_two_towers(folder / "clip")))
    embedded = {number: encoder.images(arrays(encoder, picture(number))) for number in (1, 2, 3, 4)}
    blank = encoder.images(encoder.blank(arrays(encoder, picture(1))))
    for size in (1, 2, 64):
        found = score_set(encoder, some, size)
        for row, entry in enumerate(entries):
            number, captions = int(entry["image"][0]), entry["caption_options"]
            texts = encoder.texts(captions)
            expected = scores(encoder, embedded[number], texts)[0]
            np.testing.assert_allclose(found.own[row, 0, : len(captions)], expected, atol=1e-5)
            np.testing.assert_allclose(found.blank[row, : len(captions)], scores(encoder, blank, texts)[0], atol=1e-5)
            rest = [scores(encoder, V, texts)[0] for other, V in embedded.items() if other != number]
            np.testing.assert_allclose(found.others[row, : len(captions)], np.mean(rest, axis=0), atol=1e-5)
            assert np.isnan(found.own[row, 0, len(captions) :]).all()
        assert (found.unusable, found.unknown) == ({}, 0)


def arrays(encoder: PretrainedEncoder, encoded: bytes) -> np.ndarray:
    return encoder.image_inputs.arrays(pa.table({"image": [encoded]}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(Path.unlink, "missing"), (lambda file: file.write_bytes(b"no picture"), "not an image")],
)
def test_pictures_that_cannot_be_used_spoil_only_their_entries(
    folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    entries = [{**VSR, "image": f"{number}.png"} for number in (1, 2, 2, 3)]
    (folder / "test.jsonl").write_text(lines(*entries))
    (some,) = read_sets([f"vsr={folder}"])
    spoil(folder / "images" / "2.png")
    encoder = PretrainedEncoder.load("clip", str(write_two_towers(folder / "clip")))
    found = score_set(encoder, some, 3)
    assert {number: problem.reason for number, problem in found.unusable.items()} == {1: reason, 2: reason}
    assert np.isnan(found.own[:, 0, 0]).tolist() == [False, True, True, False]
    with pytest.raises(UnusableImage, match=r"2\.png"):
        raise found.unusable[1]
