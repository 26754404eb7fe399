"""Flickr8k and Flickr30k: both forms of captions, and the lists of the splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_caption_table import captions_of, pictures, rejected_of

from groundray import prepare
from groundray.data.schema import Dataset

TOKENS = (
    '0.png#0\tA dog ; runs .\n1.png#0\tA cat .\n0.png#1\t"Stop" says a dog .\n2.png#0\tA boy .\n'
    "no tab here\n1.png#1\t .\n3.png.1#0\tOf nothing .\n\n"
)
BARS = 'image_name| comment_number| comment\n0.png| 0| A dog , "runs" .\n1.png| 1   A cat .\n0.png| 1| "Stop" .\n'
COMMAS = 'image,caption\n0.png,"A dog, runs ."\n1.png,A cat .\n'


def run(folder: Path, *more: str, status: int = 0) -> None:
    pictures(folder / "images", 3)
    words = ["flickr", "--images", f"{folder}/images", "--captions", f"{folder}/captions.txt", "--out", f"{folder}/out"]
    assert prepare.main([*words, *more]) == status


def test_token_file(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(TOKENS)
    run(tmp_path)
    assert captions_of(tmp_path / "out") == {
        "0.png": ["A dog ; runs .", '"Stop" says a dog .'],
        "1.png": ["A cat ."],
        "2.png": ["A boy ."],
    }
    assert rejected_of(tmp_path / "out") == [
        ("caption", "captions.txt:6", "empty"),
        ("image", "3.png.1", "missing"),
        ("row", "captions.txt:5", "malformed"),
    ]


def test_tables_with_bars_and_commas(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(BARS)
    run(tmp_path)
    assert captions_of(tmp_path / "out") == {"0.png": ['A dog , "runs" .', '"Stop" .']}
    assert rejected_of(tmp_path / "out") == [("row", "captions.txt:3", "malformed")]
    (tmp_path / "captions.txt").write_text(COMMAS)
    run(tmp_path, "--overwrite")
    assert captions_of(tmp_path / "out") == {"0.png": ["A dog, runs ."], "1.png": ["A cat ."]}


def test_lists_give_data_sets(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(TOKENS)
    (tmp_path / "train.txt").write_text("0.png\nunknown.png\n")
    (tmp_path / "test.txt").write_text("\ufeff1.png\r\n")
    run(tmp_path, "--train", f"{tmp_path}/train.txt", "--test", f"{tmp_path}/test.txt")
    assert list(captions_of(tmp_path / "out" / "train")) == ["0.png"]
    assert list(captions_of(tmp_path / "out" / "test")) == ["1.png"]
    assert rejected_of(tmp_path / "out" / "train") == [
        ("image", "unknown.png", "no caption"),
        ("row", "captions.txt:5", "malformed"),
    ]
    assert Dataset.open(f"{tmp_path}/out/train").counts["captions of images in no list"] == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test", "train"]


def test_an_image_in_two_lists_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_text(TOKENS)
    (tmp_path / "list.txt").write_text("0.png\n")
    run(tmp_path, "--train", f"{tmp_path}/list.txt", "--val", f"{tmp_path}/list.txt", status=2)
    assert "0.png is in the list of train too" in capsys.readouterr().err
