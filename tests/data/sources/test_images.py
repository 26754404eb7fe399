"""Images alone: a pool for search, which no stage trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from conftest import SmallWorld
from test_caption_table import picture, pictures, rejected_of

from groundray import prepare, train
from groundray.cli import pool_changes
from groundray.data.removed_rows import removed_rows
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.shards import verify_shards
from groundray.image_search.index import open_pool
from groundray.storage.folder import Folder


def test_all_pictures_of_a_folder_at_any_depth(tmp_path: Path) -> None:
    pictures(tmp_path / "in" / "b" / "deep", 2)
    pictures(tmp_path / "in" / "a", 1)
    (tmp_path / "in" / "a" / "readme.txt").write_text("no picture")
    (tmp_path / "in" / ".hidden.png").write_bytes(picture(1))
    assert prepare.main(["images", "--images", f"{tmp_path}/in", "--out", f"{tmp_path}/out"]) == 0
    pool = open_pool(f"{tmp_path}/out")
    rows = read_rows(pool, np.arange(pool.rows), ["id", "image", "width", "height"]).to_pylist()
    assert [(row["id"], row["image"], row["width"]) for row in rows] == [
        ("a/0.png", picture(0), 20),
        ("b/deep/0.png", picture(0), 20),
        ("b/deep/1.png", picture(1), 21),
    ]
    assert rejected_of(tmp_path / "out") == [("image", "a/readme.txt", "not an image")]
    assert pool.counts == {"rows": 3, "images": 3, "passed over, hidden and system files": 1}


def test_training_on_images_alone_fails_early(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", 3)
    assert prepare.main(["images", "--images", f"{tmp_path}/in", "--out", f"{tmp_path}/out"]) == 0
    data = [f"--grounding.{part}={tmp_path}/out" for part in ("train", "val")]
    assert train.main(world.settings("--dry-run", *data)) == 2
    assert "got kind 'images'" in " ".join(capsys.readouterr().out.split())


def test_images_of_a_bucket(tmp_path: Path, s3: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    pictures(tmp_path / "in" / "deep", 3)
    Folder.at(url).upload(tmp_path / "in")
    assert prepare.main(["images", "--images", url, "--out", f"{tmp_path}/out"]) == 0
    dataset = Dataset.open(f"{tmp_path}/out", "images")
    ids = read_rows(dataset, np.arange(dataset.rows), ["id"])["id"].to_pylist()
    assert ids == [f"deep/{number}.png" for number in range(3)]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-key")
    assert prepare.main(["images", "--images", url, "--out", f"{tmp_path}/denied"]) == 2


def test_a_folder_without_pictures_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    assert prepare.main(["images", "--images", f"{tmp_path}/in", "--out", f"{tmp_path}/out"]) == 2
    assert prepare.main(["images", "--images", f"{tmp_path}/none", "--out", f"{tmp_path}/out"]) == 2
    assert "none of the images can be used" in capsys.readouterr().err


def prepared(images: Path | str, out: Path | str, *words: str) -> int:
    return prepare.main(["images", "--images", str(images), "--out", str(out), *words])


def ids_of(pool: Dataset) -> list[str]:
    return read_rows(pool, np.arange(pool.rows), ["id"])["id"].to_pylist()


def test_images_are_added_as_further_shards(tmp_path: Path, anywhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in" / "b", 2)
    assert prepared(tmp_path / "in", anywhere) == 0
    before = Dataset.open(anywhere)
    assert prepared(tmp_path / "in", anywhere, "--add") == 0
    assert "has all images" in capsys.readouterr().out
    assert Dataset.open(anywhere) == before
    pictures(tmp_path / "in" / "b", 3)
    pictures(tmp_path / "in" / "a", 1)
    (tmp_path / "in" / "readme.txt").write_text("no picture")
    assert prepared(tmp_path / "in", anywhere, "--add") == 0
    assert "2 images added, 4 in all" in capsys.readouterr().out
    pool = open_pool(anywhere)
    assert ids_of(pool) == ["b/0.png", "b/1.png", "a/0.png", "b/2.png"]
    assert pool.shards[: len(before.shards)] == before.shards
    assert pool.fingerprint != before.fingerprint
    assert (pool.rows, pool.counts["images"]) == (4, 4)
    assert [name for name in pool.folder.names() if not name.startswith("shard-")] == ["dataset.json", "rejected.jsonl"]
    verify_shards(pool)
    assert prepared(tmp_path / "in", anywhere, "--add") == 0  # the text file again, which is no picture
    assert "nothing is added" in capsys.readouterr().out
    assert Dataset.open(anywhere) == pool


def test_an_image_of_another_folder_with_the_same_id_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", 2)
    assert prepared(tmp_path / "in", tmp_path / "out") == 0
    pictures(tmp_path / "other", 3)
    assert prepared(tmp_path / "other", tmp_path / "out", "--add") == 2
    assert "has an image '0.png' already, of another folder" in " ".join(capsys.readouterr().err.split())
    pictures(tmp_path / "parent" / "other", 1)
    assert prepared(tmp_path / "parent", tmp_path / "out", "--add") == 0
    assert ids_of(open_pool(f"{tmp_path}/out")) == ["0.png", "1.png", "other/0.png"]
    assert prepared(tmp_path / "in", tmp_path / "nowhere", "--add") == 2
    assert "expected shards at" in capsys.readouterr().err


def test_an_addition_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the shards are copied, and just before `dataset.json` is written."""
    pictures(tmp_path / "in", 2)
    assert prepared(tmp_path / "in", tmp_path / "out") == 0
    before = Dataset.open(f"{tmp_path}/out")
    pictures(tmp_path / "in", 4)
    for function in ("_join", "write_index"):
        with monkeypatch.context() as patches:

            def killed(*arguments: object) -> None:
                raise KeyboardInterrupt

            patches.setattr(pool_changes, function, killed)
            assert prepared(tmp_path / "in", tmp_path / "out", "--add") == 130
        assert Dataset.open(f"{tmp_path}/out") == before
    assert prepared(tmp_path / "in", tmp_path / "out", "--add") == 0
    assert ids_of(open_pool(f"{tmp_path}/out")) == [f"{number}.png" for number in range(4)]
    assert not list((tmp_path / "out").glob("adding*"))


def test_two_folders_are_added_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is added while the other's shards are about to be copied: neither reads or deletes the other's."""
    pool = tmp_path / "out"
    for name in ("a", "b", "c"):
        pictures(tmp_path / name / name, 2)
    assert prepared(tmp_path / "a", pool) == 0
    join = pool_changes._join

    def later(*arguments: Any) -> None:
        monkeypatch.setattr(pool_changes, "made_once", lambda folder, name, files, read, make, tell: make() or read())
        monkeypatch.setattr(pool_changes, "_join", join)
        assert prepared(tmp_path / "c", pool, "--add") == 0
        join(Dataset.open(str(pool)), *arguments[1:])

    monkeypatch.setattr(pool_changes, "_join", later)
    assert prepared(tmp_path / "b", pool, "--add") == 0
    verify_shards(found := open_pool(str(pool)))
    assert sorted(ids_of(found)) == [f"{name}/{number}.png" for name in ("a", "b", "c") for number in range(2)]
    assert not list(pool.glob("adding*"))


def test_a_shard_that_changes_while_it_is_copied_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "in", 2)
    assert prepared(tmp_path / "in", tmp_path / "out") == 0
    before = Dataset.open(f"{tmp_path}/out")
    pictures(tmp_path / "in", 4)
    join = pool_changes._join

    def damaged(pool: Dataset, more: Dataset, names: Any) -> None:
        more.folder.write_bytes(more.shards[0].file, b"another")
        join(pool, more, names)

    monkeypatch.setattr(pool_changes, "_join", damaged)
    assert prepared(tmp_path / "in", tmp_path / "out", "--add") == 2
    assert Dataset.open(f"{tmp_path}/out") == before


def test_what_is_rejected_is_listed_once_where_a_command_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "in", 2)
    (tmp_path / "in" / "a.txt").write_text("no picture")
    assert prepared(tmp_path / "in", tmp_path / "out") == 0
    pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "b.txt").write_text("no picture either")

    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(pool_changes, "write_index", full)
        assert prepared(tmp_path / "in", tmp_path / "out", "--add") == 2
    assert prepared(tmp_path / "in", tmp_path / "out", "--add") == 0
    names = [name for _, name, _ in rejected_of(tmp_path / "out")]
    assert names == ["a.txt", "a.txt", "b.txt"]  # those of the pool, and then those of the folder as it is now


def test_images_are_removed_and_stay_removed(tmp_path: Path, anywhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", 3)
    assert prepared(tmp_path / "in", anywhere) == 0
    pictures(tmp_path / "in", 5)
    assert prepared(tmp_path / "in", anywhere, "--add") == 0
    before = Dataset.open(anywhere)
    for unknown in ("nobody", ""):
        assert prepare.main(["images", "--out", anywhere, "--remove", "1.png", unknown]) == 2
        assert f"--remove: expected ids of images of {anywhere}, got {unknown!r}" in capsys.readouterr().err
        assert removed_rows(Dataset.open(anywhere)).tolist() == []
    assert prepare.main(["images", "--out", anywhere, "--remove", "4.png", "1.png"]) == 0
    assert prepare.main(["images", "--out", anywhere, "--remove", "1.png", "2.png"]) == 0
    assert "2 images removed, 2 left" in capsys.readouterr().out
    assert prepared(tmp_path / "in", anywhere, "--add") == 0
    after = Dataset.open(anywhere)
    assert removed_rows(after).tolist() == [1, 2, 4]
    assert (after.shards, after.fingerprint) == (before.shards, before.fingerprint)
    assert prepare.main(["images", "--out", anywhere]) == 2
    assert "--images: expected a folder" in capsys.readouterr().err
