"""Karpathy's splits: images by split with their sentences; unusable entries are rejected with their reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from PIL import Image

from groundray import prepare
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.sources.coco import CaptionedImage
from groundray.data.sources.karpathy import KarpathySplits
from groundray.storage.folder import Folder


def entry(number: int, split: str, *sentences: Any, **more: Any) -> dict[str, Any]:
    """Return an image as in dataset_flickr8k.json; `more` is what dataset_coco.json has besides."""
    texts = sentences or (f"photo {number}",)
    listed = [text if isinstance(text, dict) else {"raw": text, "tokens": []} for text in texts]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": listed, **more}


def write(folder: Path, *images: Any, **more: Any) -> Path:
    file = folder / "dataset.json"
    file.write_text(json.dumps({"dataset": "made up", "images": images, **more}))
    return file


def test_images_are_read_by_split_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        entry(3, "train", "  two  words ", {"tokens": ["from", "tokens"]}),
        entry(1, "train", "photo", filepath="val2014", cocoid=391895),
        entry(2, "restval"),
        entry(0, "test"),
    )
    found = KarpathySplits(file, "train", tmp_path)
    assert list(found.images("train")) == [
        CaptionedImage("3", ("3.jpg",), ("two words", "from tokens")),
        CaptionedImage("391895", ("val2014/1.jpg", "1.jpg"), ("photo",)),
        CaptionedImage("2", ("2.jpg",), ("photo 2",)),
    ]
    assert found.counts == {"train": 3, "test": 1}
    assert not any(found.rejected.values())


def test_every_unusable_entry_is_rejected_with_its_reason(tmp_path: Path) -> None:
    bad: list[Any] = [7, {"filename": "a.jpg"}, {**entry(5, "train"), "sentences": None}, entry(6, "")]
    file = write(
        tmp_path, *bad, entry(1, "train", "good", " .", None), entry(1, "train"), entry(2, "train", ""), entry(3, "val")
    )
    found = KarpathySplits(file, "train", tmp_path)
    assert {name: log.tally for name, log in found.rejected.items() if log} == {
        "": {"image: malformed": 3},
        "train": {
            "image: malformed": 1,
            "caption: empty": 2,
            "caption: malformed": 1,
            "image: duplicate id": 1,
            "image: no caption": 1,
        },
    }
    assert found.counts == {"train": 1, "val": 1}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Images of each split; those of val have their folder, as of COCO."""
    folder = tmp_path / "source"
    (folder / "images" / "val2014").mkdir(parents=True)
    splits = ("train", "train", "val", "test", "restval")
    images: list[Mapping[str, Any]] = []
    for number, split in enumerate(splits):
        inside = "val2014" if split == "val" else ""
        Image.new("RGB", (20, 10 + number)).save(folder / "images" / inside / f"{number}.jpg")
        images.append(entry(number, split, filepath="val2014"))
    write(folder, *images, {"filename": "no split"})
    return folder


def words(source: Path, out: Path, *more: str, images: str | None = None) -> list[str]:
    images = images or f"{source}/images"
    return ["karpathy", "--images", images, "--annotations", f"{source}/dataset.json", "--out", str(out), *more]


def ids(folder: Path) -> list[str]:
    dataset = Dataset.open(str(folder), "captions")
    return read_rows(dataset, np.arange(dataset.rows), ["id"])["id"].to_pylist()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), {"train": ["0", "1", "4"], "val": ["2"], "test": ["3"]}),
        (("--restval", "separate"), {"train": ["0", "1"], "val": ["2"], "test": ["3"], "restval": ["4"]}),
        (("--restval", "drop", "--split", "val", "train"), {"val": ["2"], "train": ["0", "1"]}),
        (("--split", "test"), {".": ["3"]}),
    ],
)
def test_splits_are_written_as_they_are_chosen(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    expected: dict[str, list[str]],
) -> None:
    out = tmp_path / "out"
    assert prepare.main(words(source, out, *more)) == 0
    assert {name: ids(out / name) for name in expected} == expected
    (rejected,) = (out / next(iter(expected)) / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["reason"] == "malformed"
    assert ("left out, images of restval: 1" in capsys.readouterr().out) == ("drop" in more)


def test_images_are_read_from_a_store(
    source: Path, tmp_path: Path, s3: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    Folder.at(url).upload(source / "images")
    assert prepare.main(words(source, tmp_path / "out", images=url)) == 0
    assert ids(tmp_path / "out" / "train") == ["0", "1", "4"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--split", "minival"), r"images of split 'minival', got splits test (1), train (3), val (1)"),
        (("--split", "val", "val"), "expected each name once"),
        (("--split", "../val", "test"), "expected names such as train"),
        (("--split", "restval"), "expected --restval separate too"),
    ],
)
def test_a_split_without_use_gives_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert prepare.main(words(source, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
