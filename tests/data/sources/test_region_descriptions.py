"""Visual Genome's region descriptions: the phrases of an image are its captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groundray import prepare
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.sources.coco import CaptionedImage
from groundray.data.sources.region_descriptions import Regions, choose_captions


def entry(id: Any, *phrases: Any) -> dict[str, Any]:
    regions = [{"region_id": 1000 + at, "image_id": id, "phrase": phrase, "x": 1} for at, phrase in enumerate(phrases)]
    return {"id": id, "regions": regions}


def write(folder: Path, *entries: Any) -> Path:
    file = folder / "region_descriptions.json"
    file.write_text(json.dumps(entries))
    return file


def test_phrases_of_an_image_are_its_captions(tmp_path: Path) -> None:
    file = write(tmp_path, entry(7, "a  dog", "A dog.", "a cat"), entry("3", "the sky"))
    found = Regions(file, tmp_path)
    assert list(found.images(False)) == [
        CaptionedImage("3", ("3.jpg", "VG_100K/3.jpg", "VG_100K_2/3.jpg"), ("the sky",)),
        CaptionedImage("7", ("7.jpg", "VG_100K/7.jpg", "VG_100K_2/7.jpg"), ("a dog", "a cat")),
    ]
    assert found.left_out[False]["left out, phrases said twice of an image"] == 1
    kept = Regions(file, tmp_path, keep_duplicates=True)
    assert [image.captions for image in kept.images(False)] == [("the sky",), ("a dog", "A dog.", "a cat")]


def test_every_unusable_entry_is_rejected_with_its_reason(tmp_path: Path) -> None:
    file = write(tmp_path, entry(1, "good", "", None), entry(1, "again"), entry(2, " . "), {"id": 3}, "text", entry(4))
    found = Regions(file, tmp_path)
    assert found.rejected[False].tally == {
        "caption: empty": 2,
        "caption: malformed": 1,
        "image: duplicate id": 1,
        "image: no caption": 2,
        "image: malformed": 2,
    }
    assert [image.id for image in found.images(False)] == ["1"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give Visual Genome's region_descriptions\.json"):
        Regions(write(tmp_path, {"image_id": 1, "objects": []}), tmp_path)


def test_chosen_captions_depend_on_the_image_alone_and_keep_their_order() -> None:
    captions = [f"phrase {number}" for number in range(50)]
    chosen = {id: choose_captions(captions, 5, id) for id in map(str, range(200))}
    assert chosen == {id: choose_captions(captions, 5, id) for id in map(str, range(200))}
    for some in chosen.values():
        assert some == sorted(set(some), key=captions.index)
        assert len(some) == 5
    often = [sum(caption in some for some in chosen.values()) for caption in captions]
    assert min(often) > 5  # each is expected 20 times
    assert max(often) < 45
    for most in (None, 50, 60):
        assert choose_captions(captions, most, "1") == captions
    assert set(choose_captions(captions, 3, "1")) < set(choose_captions(captions, 5, "1"))


def test_regions_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    (images / "VG_100K").mkdir(parents=True)
    for number in range(40):
        Image.new("RGB", (10, 12)).save(images / ("VG_100K" if number % 2 else ".") / f"{number}.jpg")
    write(tmp_path, *(entry(number, "one", "two", "three", "Two!") for number in range(41)))
    command = ["visual-genome-regions", "--images", str(images), "--regions", f"{tmp_path}/region_descriptions.json"]
    assert prepare.main([*command, "--out", f"{tmp_path}/out", "--val-fraction", "0.3", "--max-captions", "2"]) == 0
    rows = {}
    for name in ("train", "val"):
        dataset = Dataset.open(f"{tmp_path}/out/{name}", "captions")
        for row in read_rows(dataset, np.arange(dataset.rows), ["id", "captions"]).to_pylist():
            rows[row["id"]] = row["captions"]
    assert sorted(rows, key=int) == [str(number) for number in range(40)]
    assert {len(captions) for captions in rows.values()} == {2}
    shown = capsys.readouterr().out
    assert "left out, phrases beyond --max-captions" in shown
    assert "1 x image: missing" in shown
    for more, message in (
        (("--max-captions", "0"), "--max-captions: expected at least 1"),
        (("--val-fraction", "1"), "a fraction between 0 and 1"),
        (("--val-fraction", "1e-9"), "for val, got none of 41 at --val-fraction 1e-09"),
    ):
        assert prepare.main([*command, "--out", f"{tmp_path}/bad", *more]) == 2
        assert message in capsys.readouterr().err
