"""`python -m groundray.prepare` from its command line."""

from __future__ import annotations

import errno
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
from groundray.data import part_processes, parts
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.sources import protocol
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


def in_parts_of_five(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Have parts of five samples, each worth a process."""
    monkeypatch.setattr(protocol, "ITEMS_PER_PART", 5)
    monkeypatch.setattr(part_processes, "WORTH_SAMPLES", 0)
    monkeypatch.setattr("joblib.cpu_count", lambda: processes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


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
    in_parts_of_five(monkeypatch, 1)
    assert prepare.main(words(source, tmp_path / "processes")) == 0
    monkeypatch.setenv("RAY_ADDRESS", "auto")  # the session's cluster, to which this process is connected
    assert prepare.main(words(source, tmp_path / "cluster")) == 0
    assert len(Dataset.open(str(tmp_path / "cluster")).shards) == 4
    assert contents(tmp_path / "processes") == contents(tmp_path / "cluster")


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


@pytest.mark.thorough
def test_any_number_of_processes_writes_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    assert prepare.main(words(source, whole)) == 0
    for processes in (1, 2, 4):
        in_parts_of_five(monkeypatch, processes)
        assert prepare.main(words(source, tmp_path / f"by{processes}")) == 0
    made = contents(tmp_path / "by1")
    assert contents(tmp_path / "by2") == contents(tmp_path / "by4") == made
    assert sorted(made) == [
        *("dataset.json", "rejected.jsonl"),
        *(f"shard-0000{part}-000.parquet" for part in range(4)),
    ]
    # one part has the same rows, counts and rejected items
    parted, at_once = (Dataset.open(str(folder)) for folder in (tmp_path / "by1", whole))
    rows = (read_rows(dataset, np.arange(17), ["id", "image", "captions"]) for dataset in (parted, at_once))
    assert next(rows).equals(next(rows))
    assert (parted.counts, parted.source) == (at_once.counts, at_once.source)
    assert made["rejected.jsonl"] == (whole / "rejected.jsonl").read_bytes()


def test_an_interrupted_command_goes_on_with_whole_parts(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_parts_of_five(monkeypatch, 1)
    out = tmp_path / "out" / "shards"
    assert prepare.main(words(source, tmp_path / "expected")) == 0
    written: list[int] = []
    real = parts.write_shard_files

    def interrupted(*arguments: Any) -> Any:
        if len(written) == 2:
            written.clear()
            (arguments[0] / ".").write_bytes("shard-00002-000.parquet", b"cut")  # as a process that was killed
            os.kill(os.getpid(), signal.SIGINT)
        written.append(1)
        return real(*arguments)

    monkeypatch.setattr(parts, "write_shard_files", interrupted)
    assert prepare.main(words(source, out)) == 130
    assert capsys.readouterr().err == "interrupted; 2 whole parts are kept: the same command goes on\n"
    assert not out.exists()
    (work,) = out.parent.iterdir()

    # a damaged shard and a damaged record are made again; another source's parts are not used
    (work / "new" / "shard-00000-000.parquet").write_bytes(b"")
    monkeypatch.setattr(parts, "write_shard_files", real)
    (source / "images" / "90.jpg").rename(source / "images" / "moved.jpg")
    other = tmp_path / "out" / "other"
    shutil.copytree(work, other.parent / work.name.replace(".shards", ".other"))
    assert prepare.main(words(source, other)) == 0
    assert "whole from an earlier command" not in capsys.readouterr().out
    (source / "images" / "moved.jpg").rename(source / "images" / "90.jpg")

    assert prepare.main(words(source, out)) == 0
    assert "1 part is whole from an earlier command" in capsys.readouterr().out
    assert contents(out) == contents(tmp_path / "expected")
    assert sorted(path.name for path in out.parent.iterdir()) == ["other", "shards"]


def test_a_full_disk_keeps_whole_parts(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_parts_of_five(monkeypatch, 1)
    real, left = Folder.open_output, [8]

    def full(folder: Folder, name: str, flush: bool = True) -> Any:
        left[0] -= name != "owner.json"
        if left[0] <= 0 and name != "owner.json":
            raise OSError(errno.ENOSPC, "No space left on device: free space there", f"{folder}/{name}")
        return real(folder, name, flush)

    with monkeypatch.context() as patches:
        patches.setattr(Folder, "open_output", full)
        assert prepare.main(words(source, tmp_path / "shards")) == 2
    error = capsys.readouterr().err
    assert "free space there" in error
    assert "2 whole parts are kept: the same command goes on" in error
    assert prepare.main(words(source, tmp_path / "shards")) == 0
    assert "2 parts are whole from an earlier command" in capsys.readouterr().out
    assert Dataset.open(str(tmp_path / "shards")).rows == 17


@pytest.mark.parametrize("name", ["images", "image-folder", "visual-genome", "visual-genome-regions", "scenes", "text"])
def test_sources_without_captions_of_their_own_offer_no_choice_of_captions(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        prepare.main([name, "--help"])
    assert "--drop-duplicate-captions" not in capsys.readouterr().out


def test_options_of_all_sources_change_what_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = source / "captions.json"
    captions = json.loads(file.read_text())
    first = captions["annotations"][15]
    captions["annotations"].append({**first, "id": 1000, "caption": first["caption"].upper() + " ."})
    file.write_text(json.dumps(captions))
    assert prepare.main(words(source, tmp_path / "all")) == 0
    options = ("--limit", "8", "--max-side", "40", "--quality", "70", "--drop-duplicate-captions")
    assert prepare.main(words(source, tmp_path / "some", *options)) == 0
    whole, some = (Dataset.open(str(tmp_path / name)) for name in ("all", "some"))
    assert some.rows == 5  # of the first eight, three are bad
    assert some.counts["left out, captions said twice"] == 1
    assert {name: some.source[name] for name in ("limit", "max_side", "quality", "drop_duplicate_captions")} == {
        "limit": 8,
        "max_side": 40,
        "quality": 70,
        "drop_duplicate_captions": True,
    }
    assert not {"limit", "max_side", "quality", "min_side"} & set(whole.source)
    tables = [read_rows(dataset, np.arange(5), ["id", "width", "height", "captions"]) for dataset in (whole, some)]
    assert tables[0]["id"] == tables[1]["id"]
    assert {max(row["width"], row["height"]) for row in tables[1].to_pylist()} == {40}
    assert sum(map(len, tables[0]["captions"].to_pylist())) == sum(map(len, tables[1]["captions"].to_pylist())) + 1
    assert prepare.main(words(source, tmp_path / "none", "--min-side", "5000")) == 2
    assert "17 x image: too small" in capsys.readouterr().err
    for wrong, message in (
        (("--limit", "0"), "--limit: expected at least 1, got 0"),
        (("--max-side", "9", "--quality", "96"), "--quality: expected 1 to 95, got 96"),
        (("--quality", "50"), "--quality: expected --max-side too"),
    ):
        assert prepare.main(words(source, tmp_path / "none", *wrong)) == 2
        assert message in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize("anywhere", ["s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
def test_a_source_in_a_store_gives_the_same_shards(
    world: SmallWorld, source: Path, tmp_path: Path, anywhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Folder.at(anywhere).upload(source, "coco")
    Folder.at(anywhere).upload(world.source / "objects", "objects")
    Folder.at(anywhere).upload(world.source / "text", "text")
    for mine, theirs, out in (
        (words(source, tmp_path), words(Path("AT/coco"), tmp_path), "."),
        (["image-folder", "--root", f"{world.source}/objects"], ["image-folder", "--root", "AT/objects"], "train"),
        (["text", "--files", f"{world.source}/text/val.txt"], ["text", "--files", "AT/text/val.txt"], "."),
    ):
        made = []
        for number, command in enumerate((mine, theirs)):
            folder = tmp_path / f"{mine[0]}{number}"
            command = [word.replace("AT/", f"{anywhere}/") for word in command if word not in ("--out", str(tmp_path))]
            assert prepare.main([*command, "--out", str(folder)]) == 0, capsys.readouterr().err
            made.append(Dataset.open(str(folder / out)))
        assert made[0].fingerprint == made[1].fingerprint
        assert made[0].counts == made[1].counts
    missing = ["coco", "--images", f"{anywhere}/none", "--captions", f"{anywhere}/coco/captions.json"]
    assert prepare.main([*missing, "--out", str(tmp_path / "none")]) == 2
    assert f"there is no folder {anywhere}/none" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize("anywhere", ["local", "s3", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
def test_a_killed_command_goes_on_and_gives_the_same_bytes(source: Path, tmp_path: Path, anywhere: str) -> None:
    """It is killed before its n-th write, for n that grow, until it ends."""
    script = (
        "import os, sys\n"
        "from groundray.data.sources import protocol\n"
        "protocol.ITEMS_PER_PART = 5\n"
        "from groundray import prepare\n"
        "from groundray.storage.folder import Folder\n"
        "left, real = [int(sys.argv[1])], Folder.open_output\n"
        "def open_output(folder, name, flush=True):\n"
        "    left[0] -= 1\n"
        "    if not left[0]:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return real(folder, name, flush)\n"
        "Folder.open_output = open_output\n"
        "sys.exit(prepare.main(sys.argv[2:]))\n"
    )
    out = Folder.at(anywhere) / "shards"
    printed = ""
    for write in (2, 5, 7, 8, 1000):
        child = [sys.executable, "-c", script, str(write), *words(source, Path("unused"))[:-1], str(out)]
        ended = subprocess.run(child, capture_output=True, text=True, check=False)
        assert ended.returncode == (0 if write == 1000 else -signal.SIGKILL), ended.stderr
        printed += ended.stdout
    assert "whole from an earlier command" in printed
    with pytest.MonkeyPatch.context() as patches:
        in_parts_of_five(patches, 1)
        assert prepare.main(words(source, tmp_path / "expected")) == 0
    assert {name: out.read_bytes(name) for name in out.files()} == contents(tmp_path / "expected")
    assert out.parent.names() == ["shards"]
