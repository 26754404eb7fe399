"""Images alone: a pool for search, which no stage trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import servers
from conftest import SmallWorld
from test_caption_table import picture, pictures, rejected_of

from groundray import prepare, train
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
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
