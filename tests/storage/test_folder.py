"""Folders on the local disk, on S3 and on Google Cloud Storage."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import pytest

from groundray.storage.folder import Folder, format_bytes

BAD_NAMES = ["../other", "/etc/passwd", "a/../../other", "nul\0"]


def test_written_content_is_read_back(anywhere: str) -> None:
    folder = Folder.at(anywhere).make()
    folder.write_bytes("x.bin", b"\x00\x01")
    folder.write_json("y.json", {"ü": [1, 2]})
    folder.write_bytes("x.bin", b"\x02")
    assert folder.read_bytes("x.bin") == b"\x02"
    assert folder.read_json("y.json") == {"ü": [1, 2]}
    assert folder.names() == ["x.bin", "y.json"]  # and no temporary file


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_outside_the_folder_raises(anywhere: str, name: str) -> None:
    with pytest.raises(ValueError, match="inside"):
        Folder.at(anywhere).read_bytes(name)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (158e6, "158 MB"), (23.74e9, "23.7 GB")]
)
def test_format_bytes_chooses_the_unit(count: float, shown: str) -> None:
    assert format_bytes(int(count)) == shown


def test_missing_folder_is_empty(anywhere: str) -> None:
    folder = Folder.at(anywhere)
    assert not folder.exists()
    assert folder.names() == folder.files() == []
    folder.delete("nothing")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")


def test_folders_are_listed_and_deleted_with_their_content(anywhere: str) -> None:
    folder = Folder.at(anywhere)
    (folder / "one" / "deep").make().write_bytes("x", b"1")
    (folder / "one").write_bytes("y", b"2")
    (folder / "two").make().write_bytes("x", b"3")
    assert folder.names() == ["one", "two"]
    assert folder.files() == ["one/deep/x", "one/y", "two/x"]
    assert folder.exists("one/deep")
    assert (folder / "one").name == "one"
    assert str((folder / "one").parent) == str(folder) == anywhere
    folder.delete("one/y")
    assert folder.exists("one")
    folder.delete("one")
    assert folder.files() == ["two/x"]
    folder.delete(".")
    assert not folder.exists()


def test_upload_and_download_copy_a_tree(anywhere: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("content")
    (source / "large").write_bytes(bytes(range(256)) * 80_000)  # a multipart upload
    folder = Folder.at(anywhere)
    folder.upload(source, "model")
    assert folder.read_bytes("model/deep/file") == b"content"
    (folder / "model").download(tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "file").read_text() == "content"
    assert (tmp_path / "back" / "large").read_bytes() == (source / "large").read_bytes()
    (folder / "model").copy(["deep/file"], folder / "other")
    assert folder.read_bytes("other/deep/file") == b"content"
    with (folder / "model").local_copy() as local:
        assert (local / "deep" / "file").read_text() == "content"
    assert local.exists() == folder.local
    folder.delete("model")
    assert not folder.exists("model")


def test_file_url_is_the_same_folder(tmp_path: Path) -> None:
    Folder.at(tmp_path).write_bytes("x", b"1")
    assert Folder.at(f"file://{tmp_path}").read_bytes("x") == b"1"


def test_folder_is_pickled_to_another_process(anywhere: str) -> None:
    """As Ray sends it: reopened there, whatever threads the client has here."""
    folder = Folder.at(anywhere).make()
    assert pickle.loads(pickle.dumps(folder)) == folder  # noqa: S301
    process = multiprocessing.get_context("spawn").Process(target=folder.write_bytes, args=("x", b"1"))
    process.start()
    process.join()
    assert folder.read_bytes("x") == b"1"


def test_damaged_sealed_file_raises(anywhere: str) -> None:
    folder = Folder.at(anywhere).make()
    folder.write_sealed("x.json", {"steps": 4})
    assert folder.read_sealed("x.json") == {"steps": 4}
    folder.write_bytes("x.json", folder.read_bytes("x.json").replace(b"4", b"5"))
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        folder.read_sealed("x.json")
