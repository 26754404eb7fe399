"""A folder reads and writes whole files, and nothing outside itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundray.storage import Folder, size_of


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "a").make()
    folder.write_bytes("x.bin", b"\x00\x01")
    folder.write_json("y.json", {"ü": [1, 2]})
    assert folder.read_bytes("x.bin") == b"\x00\x01"
    assert folder.read_json("y.json") == {"ü": [1, 2]}
    assert folder.names() == ["x.bin", "y.json"]  # and nothing that was set aside


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "a/../../other", "nul\0"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name inside"):
        Folder.at(tmp_path).read_bytes(name)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (158e6, "158 MB"), (23.74e9, "23.7 GB")]
)
def test_sizes_are_told_in_the_unit_that_suits(count: float, shown: str) -> None:
    assert size_of(int(count)) == shown


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "none")
    assert not folder.exists()
    assert folder.names() == []
    folder.delete("nothing")


def test_upload_and_download_copy_a_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("content")
    folder = Folder.at(tmp_path / "store").make()
    folder.upload(source, "model")
    assert folder.read_bytes("model/deep/file") == b"content"
    (folder / "model").download(tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "file").read_text() == "content"
    folder.delete("model")
    assert not folder.exists("model")


def test_a_file_url_is_the_same_folder(tmp_path: Path) -> None:
    Folder.at(tmp_path).write_bytes("x", b"1")
    assert Folder.at(f"file://{tmp_path}").read_bytes("x") == b"1"


def test_a_file_is_created_once(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    assert folder.create_json("1.json", {"by": "first"})
    assert not folder.create_json("1.json", {"by": "second"})
    assert folder.read_json("1.json") == {"by": "first"}
