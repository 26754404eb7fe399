"""`python -m groundray.prepare` from its command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SmallWorld
from PIL import Image

from groundray import prepare
from groundray.data import parts
from groundray.data.schema import Dataset
from groundray.data.shards import read_rows
from groundray.storage.folder import Folder


@pytest.fixture
def source(world: SmallWorld, tmp_path: Path) -> Path:
    """A COCO source of 20 images, three of them bad, and two bad captions."""
    root = tmp_path / "source"
    shutil.copytree(world.source / "coco" / "val", root / "images")
    captions = json.loads((world.source / "coco" / "annotations" / "captions_val.json").read_text())
    (root / "images" / "72.jpg").unlink()
    (root / "images" / "73.jpg").write_bytes((root / "images" / "73.jpg").read_bytes()[:900])
    (root / "images" / "74.jpg").write_bytes(b"not a picture")
    captions["annotations"][-1]["caption"] = " "
    captions["annotations"][-2]["image_id"] = 12345
    (root / "captions.json").write_text(json.dumps(captions))
    return root


def words(source: Path, out: Path, *more: str) -> list[str]:
    return ["coco", "--images", f"{source}/images", "--captions", f"{source}/captions.json", "--out", str(out), *more]


def test_usable_images_are_written_and_others_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert prepare.main(words(source, out, "--row-group-mb", "0.02")) == 0
    dataset = Dataset.open(str(out), "captions")
    assert dataset.rows == dataset.counts["images"] == 17
    assert len(dataset.group_sizes) > 1
    table = read_rows(dataset, np.arange(17), ["id", "image", "captions"])
    assert table["id"].to_pylist() == [str(number) for number in range(75, 92)]
    for row in table.to_pylist():
        assert row["image"] == (source / "images" / f"{row['id']}.jpg").read_bytes()
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert sorted((item["what"], item["id"], item["reason"]) for item in rejected) == [
        ("caption", "98", "unknown image"),
        ("caption", "99", "empty"),
        ("image", "72", "missing"),
        ("image", "73", "truncated"),
        ("image", "74", "not an image"),
    ]
    shown = capsys.readouterr().out
    assert "17 images with 83 captions" in shown
    assert "1 x image: missing" in shown

    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert prepare.main(words(source, out)) == 0
    assert "prepared already (17 rows)" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before

    (source / "images" / "75.jpg").write_bytes((source / "images" / "76.jpg").read_bytes())
    assert prepare.main(words(source, out)) == 2
    assert "holds something else" in capsys.readouterr().err
    (out / "dataset.json").write_text('{"schema": 0}')  # as another version might have left it
    assert prepare.main(words(source, out, "--overwrite")) == 0
    assert Dataset.open(str(out)).fingerprint != dataset.fingerprint


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_and_processes_write_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare.main(words(source, tmp_path / "processes")) == 0
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the session's cluster, to which this process is connected
    assert prepare.main(words(source, tmp_path / "cluster")) == 0
    names = sorted(file.name for file in (tmp_path / "cluster").iterdir())
    assert names == ["dataset.json", "rejected.jsonl", "shard-00000.parquet"]
    for name in names:
        assert (tmp_path / "processes" / name).read_bytes() == (tmp_path / "cluster" / name).read_bytes()


def test_strict_writes_nothing_if_something_is_rejected(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(words(source, tmp_path / "shards", "--strict")) == 1
    assert not (tmp_path / "shards").exists()
    assert "nothing was written" in capsys.readouterr().err


def test_a_source_without_usable_images_fails(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (source / "images").iterdir():
        file.write_bytes(b"")
    assert prepare.main(words(source, tmp_path / "shards")) == 2
    assert "19 x image: not an image" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("anywhere", ["local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_scenes_are_prepared_once(anywhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = ["scenes", "--out", anywhere, "--num-scenes", "12", "--num-val", "4"]
    assert prepare.main(scenes) == 0
    assert Dataset.open(f"{anywhere}/captions/train").rows == 12
    assert Dataset.open(f"{anywhere}/captions/val").rows == 4
    assert Dataset.open(f"{anywhere}/text/train", "text").rows == 60
    graphs = Dataset.open(f"{anywhere}/scene_graphs/val", "scene_graphs")
    train = Dataset.open(f"{anywhere}/scene_graphs/train", "scene_graphs")
    assert graphs.vocabulary == train.vocabulary
    singles = Dataset.open(f"{anywhere}/objects/val", "labelled_images")
    assert singles.rows == 50 * len(singles.vocabulary["classes"])
    assert prepare.main(scenes) == 0
    assert "prepared already" in capsys.readouterr().out
    assert prepare.main([*scenes, "--seed", "1"]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_scene_graphs_are_split_and_counted(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = world.source / "visual_genome" / "train"
    names = ("objects", "attributes", "relationships", "image-data")
    files = [word for name in names for word in (f"--{name}", f"{folder}/{name.replace('-', '_')}.json")]
    images = ["--images", f"{world.source}/coco/train"]
    command = ["visual-genome", *images, *files, "--out", f"{tmp_path}/graphs"]
    assert prepare.main([*command, "--val-fraction", "0.25", "--num-predicates", "4"]) == 0
    train, val = (Dataset.open(f"{tmp_path}/graphs/{part}", "scene_graphs") for part in ("train", "val"))
    assert train.rows + val.rows == 72
    assert 8 <= val.rows <= 28
    assert train.vocabulary == val.vocabulary
    assert len(train.vocabulary["predicates"]) == 5
    assert train.counts["left out, relations of other predicates"] > 0
    rows = read_rows(train, np.arange(train.rows), ["id", "objects", "relations"]).to_pylist()
    assert train.counts["objects"] == sum(len(row["objects"]) for row in rows)
    for row in rows:
        assert all(0 < item["class"] < len(train.vocabulary["classes"]) for item in row["objects"])
        for relation in row["relations"]:
            assert 1 <= relation["predicate"] <= 4
            assert max(relation["subject"], relation["object"]) < len(row["objects"])
    assert "left out, relations of other predicates" in capsys.readouterr().out

    # other images, with the predicates and classes of these
    other = [*command[:-1], f"{tmp_path}/other", "--vocabulary", f"{tmp_path}/graphs/train"]
    assert prepare.main(other) == 0
    assert Dataset.open(f"{tmp_path}/other").vocabulary == train.vocabulary
    assert prepare.main([*command, "--val-fraction", "1.5", "--overwrite"]) == 2
    assert "--val-fraction: expected a fraction between 0 and 1" in capsys.readouterr().err


def test_class_folders_are_prepared(world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "objects"
    shutil.copytree(world.source / "objects", root)
    (root / "val" / "emu").mkdir()
    shutil.copy(next((root / "train").rglob("*.jpg")), root / "val" / "emu" / "1.jpg")
    assert prepare.main(["image-folder", "--root", str(root), "--out", f"{tmp_path}/out"]) == 0
    train = Dataset.open(f"{tmp_path}/out/train", "labelled_images")
    assert train.rows == 4 * len(train.vocabulary["classes"])
    assert "1 x image: unknown class" in capsys.readouterr().out
    assert prepare.main(["image-folder", "--root", f"{root}/val", "--out", f"{tmp_path}/out2"]) == 2
    assert "expected class folders in" in capsys.readouterr().err


def test_an_odd_file_name_does_not_stop_the_rest(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unzipped from Windows, a name is often not UTF-8. Images that the captions do not name do not matter."""
    odd = os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(source / "images" / "75.jpg", source / "images" / odd)
    assert prepare.main(words(source, tmp_path / "captions")) == 0
    assert Dataset.open(str(tmp_path / "captions")).rows == 17
    root = tmp_path / "root"
    for name in ("train/dog/1.jpg", f"train/dog/{odd}", "validation/dog/1.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / "images" / "75.jpg", root / name)
    assert prepare.main(["image-folder", "--root", str(root), "--out", str(tmp_path / "objects")]) == 0
    (rejected,) = map(json.loads, (tmp_path / "objects" / "train" / "rejected.jsonl").read_text().splitlines())
    assert (rejected["what"], rejected["id"], rejected["reason"]) == ("image", r"dog/caf\xe9.jpg", "name not UTF-8")
    assert f"{root}/validation is not read" in capsys.readouterr().out
    root.rename(tmp_path / odd)
    assert prepare.main(["image-folder", "--root", str(tmp_path / odd), "--out", str(tmp_path / "other")]) == 2
    assert r"caf\xe9.jpg" in capsys.readouterr().err


def test_width_and_height_are_those_of_the_upright_picture(source: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((64, 32), 50).save(source / "images" / "75.jpg", exif=exif)
    assert prepare.main(words(source, tmp_path / "out")) == 0
    dataset = Dataset.open(str(tmp_path / "out"), "captions")
    first = read_rows(dataset, np.arange(1), ["id", "width", "height"]).to_pylist()
    assert first == [{"id": "75", "width": 32, "height": 64}]


def test_lines_of_text_are_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n")
    assert prepare.main(["text", "--files", f"{tmp_path}/a.txt", "--out", f"{tmp_path}/out"]) == 0
    assert Dataset.open(f"{tmp_path}/out", "text").counts == {"rows": 2, "lines": 2}
    assert "2 lines, " in capsys.readouterr().out
    (tmp_path / "b.txt").write_text("\n")
    assert prepare.main(["text", "--files", f"{tmp_path}/b.txt", "--out", f"{tmp_path}/none"]) == 2
    assert "none of the lines can be used" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "/no/such/folder"}, "there is no folder /no/such/folder"),
        ({"captions": "/no/such/file.json"}, "there is no file /no/such/file.json"),
    ],
)
def test_a_missing_source_is_named(
    source: Path, tmp_path: Path, change: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"images": f"{source}/images", "captions": f"{source}/captions.json"} | change
    out = str(tmp_path / "shards")
    assert prepare.main(["coco", "--images", given["images"], "--captions", given["captions"], "--out", out]) == 2
    assert message in capsys.readouterr().err


def test_damaged_captions_give_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "captions.json").write_text("{")
    assert prepare.main(words(source, tmp_path / "shards")) == 2
    error = capsys.readouterr().err
    assert "captions.json is not JSON" in error
    assert "Traceback" not in error


def commands(world: SmallWorld, source: Path, out: Path) -> dict[str, list[str]]:
    """A command for each source."""
    graphs = world.source / "visual_genome" / "train"
    names = ("objects", "attributes", "relationships", "image-data")
    return {
        "coco": words(source, out),
        "visual-genome": [
            *("visual-genome", "--images", f"{world.source}/coco/train", "--out", str(out)),
            *(word for name in names for word in (f"--{name}", f"{graphs}/{name.replace('-', '_')}.json")),
        ],
        "image-folder": ["image-folder", "--root", f"{world.source}/objects", "--out", str(out)],
        "text": ["text", "--files", f"{world.source}/text/val.txt", "--out", str(out)],
    }


@pytest.mark.parametrize("name", ["coco", "visual-genome", "image-folder", "text"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_one_line_and_leaves_nothing(
    world: SmallWorld,
    source: Path,
    tmp_path: Path,
    name: str,
    number: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The signal comes after the first row is read, while a shard is open."""
    real = parts.write_shard_files

    def signalled(folder: Folder, kind: str, rows: Iterator[Any], *rest: Any) -> Any:
        def after_one() -> Iterator[Any]:
            yield next(rows)
            os.kill(os.getpid(), number)
            yield from rows

        return real(folder, kind, after_one(), *rest)

    monkeypatch.setattr(parts, "write_shard_files", signalled)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    command = commands(world, source, tmp_path / "new" / "shards")[name]
    assert prepare.main(command) == status
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_of_a_pool_gives_one_line(tmp_path: Path, number: int, status: int) -> None:
    """As Ctrl-C in a terminal: the processes that draw and check images receive it too."""
    (tmp_path / "tmp").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "groundray.prepare", "scenes", "--out", f"{tmp_path}/out", "--num-scenes", "20000"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": f"{tmp_path}/tmp"},
    )
    assert child.stderr
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.writing-*/new/source/**/*.jpg")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(child.pid, number)
    assert child.wait(timeout=60) == status
    assert child.stderr.read() == "interrupted; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not list((tmp_path / "tmp").iterdir())
