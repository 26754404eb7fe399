"""Tables of captions: any format gives the same rows, images are joined, and what cannot be used is named."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers
from PIL import Image

from groundray import prepare
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.sources import protocol
from groundray.data.sources.caption_lists import caption_list
from groundray.data.sources.held_out import is_held_out
from groundray.storage.folder import Folder

HUB_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20 + number, 16), (number, 50, 90)).save(out, "PNG")
    return out.getvalue()


def pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write a table in the format that its name says."""
    if file.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[at] for row in rows] for at, name in enumerate(columns)}), file)
    elif file.suffix == ".jsonl":
        lines = (json.dumps(dict(zip(columns, row, strict=True))) for row in rows)
        file.write_text("\n".join(lines) + "\n")
    else:
        with file.open("w", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writerows([columns, *rows])
    return file


def run(files: Path | str, out: Path | str, *more: str, status: int = 0) -> None:
    assert prepare.main(["table", "--files", str(files), "--out", str(out), *more]) == status


def captions_of(out: Path | str) -> dict[str, list[str]]:
    dataset = Dataset.open(str(out), "captions")
    return {
        row["id"]: row["captions"]
        for row in read_rows(dataset, np.arange(dataset.rows), ["id", "captions"]).to_pylist()
    }


def rejected_of(out: Path) -> list[tuple[str, str, str]]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return sorted((item["what"], item["id"], item["reason"]) for item in lines)


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl", "c.parquet"])
def test_rows_of_an_image_are_joined_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(protocol, "ITEMS_PER_PART", 3)
    pictures(tmp_path / "images", 8)
    draw = random.Random(5)
    rows = [(f"images/{draw.randrange(8)}.png", f'row {number}, a "dog";\tor more') for number in range(40)]
    file = write_table(tmp_path / name, ["File Name", "caption"], rows)
    run(file, tmp_path / "out")
    expected: dict[str, list[str]] = {}
    for image, caption in rows:
        expected.setdefault(image, []).append(" ".join(caption.split()))
    assert list(captions_of(tmp_path / "out").items()) == list(expected.items())
    assert len(Dataset.open(str(tmp_path / "out")).shards) == 3


def test_parquet_of_a_hub_gives_a_data_set_for_each_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 30), ("test", 7)):
        images = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(count)]
        images[3] = {"bytes": None, "path": None}
        images[4] = {"bytes": picture(4)[:60], "path": "4.png"}
        captions = [[f"{split} {number}", f"again {number}"] for number in range(count)]
        table = pa.table(
            {"image": pa.array(images, HUB_IMAGE), "captions": captions, "filename": map(str, range(count))}
        )
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet", row_group_size=8)
    run(tmp_path / "*.parquet", tmp_path / "out")
    for split, count in (("train", 30), ("test", 7)):
        numbers = [number for number in range(count) if number not in (3, 4)]
        expected = {str(number): [f"{split} {number}", f"again {number}"] for number in numbers}
        assert captions_of(tmp_path / "out" / split) == expected
        assert rejected_of(tmp_path / "out" / split) == [("image", "3", "missing"), ("image", "4", "truncated")]
        dataset = Dataset.open(f"{tmp_path}/out/{split}")
        stored = read_rows(dataset, np.arange(dataset.rows), ["image"])["image"].to_pylist()
        assert stored == [picture(number) for number in numbers]
    assert "column id: filename" in capsys.readouterr().out
    run(tmp_path / "train-*.parquet", tmp_path / "one", "--limit", "5")
    assert len(captions_of(tmp_path / "one")) == 3


def test_a_column_of_splits_gives_data_sets(tmp_path: Path) -> None:
    pictures(tmp_path, 4)
    rows = [(f"{number}.png", f"a dog {number}", ("train", "val")[number % 2]) for number in range(4)]
    file = write_table(tmp_path / "c.csv", ["image", "text", "Split"], [*rows, ("0.png", "nowhere", "")])
    run(file, tmp_path / "out")
    assert captions_of(tmp_path / "out" / "train") == {"0.png": ["a dog 0"], "2.png": ["a dog 2"]}
    assert captions_of(tmp_path / "out" / "val") == {"1.png": ["a dog 1"], "3.png": ["a dog 3"]}
    assert rejected_of(tmp_path / "out" / "train") == [("row", "c.csv:6", "no split")]


def labels_of(out: Path | str) -> dict[str, str]:
    dataset = Dataset.open(str(out), "labelled_images")
    rows = read_rows(dataset, np.arange(dataset.rows), ["id", "label"]).to_pylist()
    return {row["id"]: dataset.vocabulary["classes"][row["label"]] for row in rows}


def test_a_column_of_classes_gives_labelled_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path, 7)
    rows = [
        ("0.png", " dog", "train"),
        ("1.png", "cat", "train"),
        ("1.png", "cat", "train"),  # the same again
        ("1.png", "dog", "train"),
        ("2.png", "", "train"),
        ("3.png", "bird", "test"),
        ("gone.png", "dog", "test"),
    ]
    file = write_table(tmp_path / "c.csv", ["image", "Class", "split"], rows)
    run(file, tmp_path / "out", "--label-column", "class")
    assert labels_of(tmp_path / "out" / "train") == {"0.png": "dog", "1.png": "cat"}
    assert labels_of(tmp_path / "out" / "test") == {"3.png": "bird"}
    for split in ("train", "test"):  # stages compare them
        assert Dataset.open(f"{tmp_path}/out/{split}").vocabulary == {"classes": ("bird", "cat", "dog")}
    assert rejected_of(tmp_path / "out" / "train") == [
        ("image", "2.png", "no class"),
        ("row", "c.csv:5", "two classes"),
        ("row", "c.csv:6", "no class"),
    ]
    assert rejected_of(tmp_path / "out" / "test") == [("image", "gone.png", "missing")]
    capsys.readouterr()
    for more, message in (
        (["--label-column", "clas"], "did you mean 'Class'?"),
        (["--label-column", "class", "--caption-column", "class"], "not allowed with argument"),
        (["--label-column", "class", "--drop-duplicate-captions"], "expected a table of captions"),
    ):
        if "not allowed" in message:
            with pytest.raises(SystemExit):
                run(file, tmp_path / "bad", *more)
        else:
            run(file, tmp_path / "bad", *more, status=2)
        assert message in " ".join(capsys.readouterr().err.split())


def test_numbers_of_classes_have_the_names_that_a_hub_gives_them(tmp_path: Path) -> None:
    rows = [(picture(number), number) for number in (10, 9, 0)] + [(picture(3), -1)]
    file = write_table(tmp_path / "c.parquet", ["image", "label"], rows)
    run(file, tmp_path / "numbers", "--label-column", "label", "--limit", "3")
    dataset = Dataset.open(f"{tmp_path}/numbers")
    assert dataset.vocabulary["classes"] == ("-1", "0", "9", "10")
    assert list(labels_of(tmp_path / "numbers").values()) == ["10", "9", "0"]
    names = [f"class {number}" for number in range(10)]
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    table = pq.read_table(file).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)
    run(file, tmp_path / "names", "--label-column", "label")
    assert list(labels_of(tmp_path / "names").values()) == ["class 9", "class 0"]
    reasons = [reason for _, _, reason in rejected_of(tmp_path / "names")]
    assert reasons == ["no class"] * 4  # 10 and -1, and their images


def test_a_fraction_of_the_images_is_held_out_with_all_of_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path, 60)
    rows = [(f"{number % 60}.png", f"caption {number}") for number in range(120)]
    file = write_table(tmp_path / "c.csv", ["image", "caption"], [*rows, ("5.png", "...")])
    run(file, tmp_path / "out", "--val-fraction", "0.3")
    train, val = (captions_of(tmp_path / "out" / name) for name in ("train", "val"))
    run(file, tmp_path / "whole")
    assert train | val == captions_of(tmp_path / "whole")
    assert not train.keys() & val.keys()
    assert 8 < len(val) < 30
    assert set(val) == {id for id in (f"{number}.png" for number in range(60)) if is_held_out(id, 0.3)}
    assert rejected_of(tmp_path / "out" / ("val" if "5.png" in val else "train")) == [("caption", "c.csv:122", "empty")]
    run(file, tmp_path / "out", "--val-fraction", "0.2", status=2)  # another source
    capsys.readouterr()
    run(file, tmp_path / "none", "--val-fraction", "1e-9", status=2)
    assert f"split 'val' of {file} at --val-fraction 1e-09 has no image" in capsys.readouterr().err
    write_table(file, ["image", "caption", "split"], [("0.png", "a", "train"), ("1.png", "a", "val")])
    run(file, tmp_path / "split", "--val-fraction", "0.3", status=2)
    assert "expected a table without splits, got train, val" in " ".join(capsys.readouterr().err.split())


def test_bad_rows_are_named_and_all_others_read(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    (tmp_path / "secret.png").write_bytes(picture(9))
    lines = [
        "image,caption",
        "0.png,good",
        "1.png,one,field too many",
        '2.png,"quote that never closes',
        "2.png,good again",
        "0.png,caf\xe9",
        "1.png,...",
        ",of nothing",
        "missing.png,gone",
        "../secret.png,outside",
        f"{tmp_path}/images/2.png,by its path",
        f"{tmp_path}/secret.png,outside too",
        "https://user:pa55word@host.test/x.png?token=abcdefgh,on the web",
    ]
    (tmp_path / "c.csv").write_bytes("\n".join(lines).encode("latin-1"))
    run(tmp_path / "c.csv", tmp_path / "out", "--images", str(tmp_path / "images"))
    assert captions_of(tmp_path / "out") == {"0.png": ["good"], "2.png": ["good again", "by its path"]}
    assert rejected_of(tmp_path / "out") == [
        ("caption", "c.csv:7", "empty"),
        ("image", "../secret.png", "outside"),
        ("image", f"{tmp_path}/secret.png", "outside"),
        ("image", "1.png", "no caption"),
        ("image", "https://***@host.test/x.png?token=***", "web address"),
        ("image", "missing.png", "missing"),
        ("row", "c.csv:3", "malformed"),
        ("row", "c.csv:4", "malformed"),
        ("row", "c.csv:6", "not UTF-8"),
        ("row", "c.csv:8", "malformed"),
    ]
    text = (tmp_path / "out" / "rejected.jsonl").read_text()
    assert "pa55word" not in text
    assert "abcdefgh" not in text


def test_captions_of_mixed_types(tmp_path: Path) -> None:
    pictures(tmp_path, 4)
    captions = ["a text", ["a list", "of two"], [{"raw": "an object"}, None, 5], 7]
    file = write_table(tmp_path / "c.jsonl", ["image", "caption"], [(f"{n}.png", c) for n, c in enumerate(captions)])
    file.write_text(file.read_text() + '\n[1]\n{"image": "0.png", "cap\n{"image": "0.png"}\n')
    run(file, tmp_path / "out")
    assert captions_of(tmp_path / "out") == {
        "0.png": ["a text"],
        "1.png": ["a list", "of two"],
        "2.png": ["an object"],
    }
    assert rejected_of(tmp_path / "out") == [
        ("caption", "c.jsonl:3", "malformed"),
        ("caption", "c.jsonl:3", "malformed"),
        ("caption", "c.jsonl:4", "malformed"),
        ("image", "3.png", "no caption"),
        ("row", "c.jsonl:6", "malformed"),
        ("row", "c.jsonl:7", "malformed"),
    ]


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ('["a dog", "a cat"]', ["a dog", "a cat"]),
        ("['a dog', \"it's\"]", ["a dog", "it's"]),
        ("['tis a dog", ["['tis a dog"]),
        ("[a dog]", ["[a dog]"]),
        (None, []),
        ([], []),
    ],
)
def test_a_list_in_a_text_is_a_list(value: Any, captions: list[str]) -> None:
    assert caption_list(value) == captions


def test_an_id_of_two_images_is_rejected(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    rows = [(7.0, "0.png", "a"), (7, "0.png", "b"), (7, "1.png", "c"), (8, "2.png", "d"), (None, "2.png", "e")]
    file = write_table(tmp_path / "c.jsonl", ["id", "image", "caption"], rows)
    run(file, tmp_path / "out", "--id-column", "id")
    assert captions_of(tmp_path / "out") == {"7": ["a", "b"], "8": ["d"]}
    assert rejected_of(tmp_path / "out") == [("image", "7", "duplicate id"), ("row", "c.jsonl:5", "malformed")]
    run(file, tmp_path / "by_name")
    assert captions_of(tmp_path / "by_name") == {"0.png": ["a", "b"], "1.png": ["c"], "2.png": ["d", "e"]}


def test_bytes_are_joined_by_an_id_alone(tmp_path: Path) -> None:
    rows = [(picture(number % 2), f"caption {number}", number % 2) for number in range(4)]
    file = write_table(tmp_path / "c.parquet", ["image", "caption", "image_id"], rows)
    run(file, tmp_path / "joined")
    assert captions_of(tmp_path / "joined") == {"0": ["caption 0", "caption 2"], "1": ["caption 1", "caption 3"]}
    file = write_table(tmp_path / "c.parquet", ["image", "caption"], [row[:2] for row in rows])
    run(file, tmp_path / "each")
    assert captions_of(tmp_path / "each") == {f"c.parquet:{number}": [f"caption {number}"] for number in range(4)}


def test_a_change_of_a_file_or_an_option_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(picture(number), f"caption {number}", number) for number in range(3)]
    columns = ["image", "caption", "key"]
    file = write_table(tmp_path / "c.parquet", columns, rows)
    run(file, tmp_path / "out")
    run(file, tmp_path / "out")
    assert "prepared already (3 rows)" in capsys.readouterr().out
    source = Dataset.open(f"{tmp_path}/out").source
    run(file, tmp_path / "out", "--id-column", "caption", status=2)
    write_table(tmp_path / "c.parquet", columns, rows[:2])
    run(file, tmp_path / "out", status=2)
    assert source["from"] == [str(file)]


def test_files_of_the_same_name_in_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "c.parquet", ["image", "caption"], [(picture(1), folder)])
        write_table(tmp_path / folder / "c.csv", ["image", "caption"], [("0.png", folder)])
    run(tmp_path / "*" / "c.parquet", tmp_path / "out")
    assert captions_of(tmp_path / "out") == {"a/c.parquet:0": ["a"], "b/c.parquet:0": ["b"]}
    run(tmp_path / "*" / "c.csv", tmp_path / "none", status=2)
    assert "--images: expected the folder of the images" in capsys.readouterr().err


def test_columns_of_a_file_without_titles_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    (tmp_path / "c.tsv").write_text("the first, a dog\t0.png\nthe second\t1.png\n")
    run(tmp_path / "c.tsv", tmp_path / "out", "--columns", "caption", "image")
    assert captions_of(tmp_path / "out") == {"0.png": ["the first, a dog"], "1.png": ["the second"]}


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("c.csv", "picture,caption\n0.png,a\n", [], "expected a column of images named image,"),
        ("c.csv", "image,captoin\n0.png,a\n", [], "did you mean 'captoin'?"),
        ("c.csv", "image,caption\n0.png,a\n", ["--caption-column", "captoin"], "did you mean 'caption'?"),
        ("c.csv", "image,caption,text\n0.png,a,b\n", [], "got caption, text: choose with --caption-column"),
        ("c.csv", "", [], "it is empty"),
        ("c.csv", "image,caption\n", [], "has no image with a usable caption"),
        ("c.csv", "\x1f\x8bimage", [], "got a gzip file: unpack it"),
        ("c.jsonl", "", [], "it is empty"),
        ("c.jsonl", "image,caption\n", [], "expected a JSON object per line"),
        ("c.parquet", "PAR1 cut", [], "is cut off, damaged, or not Parquet"),
        ("c.xlsx", "PK", [], "whose name ends with .csv, .tsv, .jsonl or .parquet"),
        ("other", "", [], "there is no file"),
    ],
)
def test_a_table_that_cannot_be_read_fails_with_the_repair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, more: list[str], message: str
) -> None:
    (tmp_path / name).write_text(content, "latin-1")
    run(tmp_path / name.replace("other", "c.csv"), tmp_path / "out", *more, status=2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_pattern_that_matches_nothing_and_columns_that_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "*.csv", tmp_path / "out", status=2)
    assert "no file matches" in capsys.readouterr().err
    write_table(tmp_path / "a.csv", ["image", "caption"], [("0.png", "a")])
    write_table(tmp_path / "b.csv", ["image", "text"], [("0.png", "a")])
    run(tmp_path / "*.csv", tmp_path / "out", status=2)
    assert "expected the columns of" in capsys.readouterr().err


def test_a_parquet_file_with_a_damaged_page_fails_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(bytes(np.random.default_rng(number).bytes(3000)), f"caption {number}") for number in range(9)]
    file = write_table(tmp_path / "c.parquet", ["image", "caption"], rows)
    content = bytearray(file.read_bytes())
    content[4:40] = bytes(36)
    file.write_bytes(content)
    run(file, tmp_path / "out", status=2)
    assert "c.parquet is cut off, damaged, or not Parquet" in " ".join(capsys.readouterr().err.split())


def test_tables_and_images_of_a_bucket(
    tmp_path: Path, s3: servers.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    pictures(tmp_path / "data" / "images", 5)
    names = ["0.png", f"{url}/images/1.png", f"s3://{servers.NO_BUCKET}/2.png", f"{url}/images/gone.png", "3.png"]
    write_table(tmp_path / "data" / "a.csv", ["url", "text"], [(name, f"of {name[-5:]}") for name in names])
    images = pa.array([{"bytes": picture(number), "path": None} for number in range(9)], HUB_IMAGE)
    table = pa.table({"image": images, "caption": [f"caption {number}" for number in range(9)]})
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    Folder.at(url).upload(tmp_path / "data")
    out = Folder.at(url) / "out"
    run(f"{url}/a.csv", str(out), "--images", f"{url}/images")
    assert captions_of(str(out)) == {"0.png": ["of 0.png"], names[1]: ["of 1.png"], "3.png": ["of 3.png"]}
    lines = [json.loads(line) for line in out.read_bytes("rejected.jsonl").splitlines()]
    assert [(item["id"], item["reason"]) for item in lines] == [(names[2], "missing"), (names[3], "missing")]
    run(f"{url}/train-*.parquet", tmp_path / "hub")
    assert len(captions_of(tmp_path / "hub")) == 9
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-key")
    run(f"{url}/a.csv", tmp_path / "denied", status=2)
    error = " ".join(capsys.readouterr().err.split())
    assert "expected credentials" in error
    assert "wrong-secret-key" not in error
