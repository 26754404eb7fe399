"""Folders on the local disk, on S3 and on Google Cloud Storage."""

from __future__ import annotations

import errno
import gzip
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from groundray.storage.folder import Folder, format_bytes, open_file
from groundray.storage.seals import Damaged, FileSeal, OtherVersion, Version

BAD_NAMES = ["../other", "/etc/passwd", "a/../../other", "nul\0"]


def test_written_content_is_read_back(anywhere: str) -> None:
    folder = Folder.at(anywhere).make()
    folder.write_bytes("x.bin", b"\x00\x01")
    folder.write_json("y.json", {"ü": [1, 2]})
    folder.write_bytes("x.bin", b"\x02")
    assert folder.read_bytes("x.bin") == b"\x02"
    assert folder.read_json("y.json") == {"ü": [1, 2]}
    assert folder.names() == ["x.bin", "y.json"]  # and no temporary file


def test_files_are_copied_as_they_are_whatever_their_names(anywhere: str, tmp_path: Path) -> None:
    """pyarrow itself compresses and decompresses files with such names."""
    content = {"a.gz": gzip.compress(b"text"), "b.gz": b"not gzip", "c.bz2": b"c"}
    folder = Folder.at(anywhere).make()
    for name, written in content.items():
        folder.write_bytes(name, written)
    assert {name: folder.read_bytes(name) for name in content} == content
    folder.download(tmp_path / "copy")
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in content} == content
    assert folder.seal("a.gz").bytes == len(content["a.gz"])


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_outside_the_folder_raises(anywhere: str, name: str) -> None:
    with pytest.raises(ValueError, match="inside"):
        Folder.at(anywhere).read_bytes(name)


def test_an_unknown_users_home_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"^~nobody-here/x: .* a user with a home folder"):
        Folder.at("~nobody-here/x")
    with pytest.raises(ValueError, match=r"^~nobody-here/x: "), open_file("~nobody-here/x"):
        pass
    assert Folder.at("./~nobody-here/x").name == "x"


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


KEYS = "steps|loss"
DAMAGES = {
    "emptied": lambda text: b"",
    "cut": lambda text: text[:-4],
    "another number": lambda text: text.replace(b"4", b"5"),
    "the seal's key misspelt": lambda text: text.replace(b'"sha256"', b'"sha257"'),
    "a slice with the seal's key lost": lambda text: text.replace(b'",\n  "sha256": "', b""),
    "another kind": lambda text: b"[1]",
    "no JSON": lambda text: b"\x89PNG\r\n",
    "not UTF-8": lambda text: text.replace(b"steps", b"st\xffps"),
    "deeply nested": lambda text: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_document_is_named_with_the_repair(tmp_path: Path, damage: str) -> None:
    folder = Folder.at(tmp_path)
    folder.write_sealed("x.json", {"steps": 4, "loss": ""})
    folder.write_bytes("x.json", DAMAGES[damage](folder.read_bytes("x.json")))
    with pytest.raises(Damaged, match=rf"{tmp_path}/x\.json is damaged: .*: copy it back"):
        folder.read_sealed("x.json", KEYS, "copy it back")


def test_document_without_a_seal_is_read_where_its_keys_are_those_of_earlier_versions(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    folder.write_json("x.json", {"steps": 4, "loss": None})
    assert folder.read_sealed("x.json", KEYS) == {"steps": 4, "loss": None}
    for keys in (None, "steps"):
        with pytest.raises(Damaged, match="no checksum"):
            folder.read_sealed("x.json", keys)
    folder.write_json("x.json", {})
    with pytest.raises(Damaged, match="no checksum"):
        folder.read_sealed("x.json", KEYS)


def test_other_format_is_told_from_damage(tmp_path: Path) -> None:
    """Another version may seal in another way; a damaged number of the format is no other format."""
    folder, ours = Folder.at(tmp_path), Version("format", 3)

    def read() -> dict[str, Any]:
        return folder.read_sealed("x.json", version=ours)

    folder.write_sealed("x.json", {"format": 3, "steps": 4})
    assert read() == {"format": 3, "steps": 4}
    text = folder.read_bytes("x.json")
    for old, new in ((b": 3", b": 7"), (b": 3", b": null"), (b"format", b"formas"), (b"4", b"5"), (b": 3", b": true")):
        folder.write_bytes("x.json", text.replace(old, new))
        with pytest.raises(Damaged):
            read()
    folder.write_sealed("x.json", {"format": 4, "groundray": "9.0"})
    with pytest.raises(OtherVersion) as raised:
        read()
    assert (raised.value.number, raised.value.written_by) == (4, "9.0")
    folder.write_json("x.json", {"format": 4, "crc": "0123"})
    with pytest.raises(OtherVersion):
        read()
    folder.write_sealed("x.json", {"steps": 4})
    with pytest.raises(OtherVersion):
        read()


def test_sealed_content_is_any_that_json_holds(tmp_path: Path) -> None:
    """Number keys, tuples, NaN, and names of files that are not UTF-8."""
    folder = Folder.at(tmp_path)
    folder.write_sealed("x.json", {2: (1, "a"), 10: float("inf"), "name": "\udcff\u00fc"})
    assert folder.read_sealed("x.json") == {"2": [1, "a"], "10": float("inf"), "name": "\udcff\u00fc"}


def test_folder_or_pipe_in_place_of_a_document_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    os.mkfifo(tmp_path / "y.json")
    for name in ("x.json", "y.json"):
        with pytest.raises(Damaged, match=f"{name} is damaged: it is no file"):
            Folder.at(tmp_path).read_sealed(name)


TEXT_DAMAGES = {
    "emptied": lambda text: b"",
    "cut": lambda text: text[:-1],
    "cut in its seal": lambda text: text[:12],
    "another number": lambda text: text.replace(b"4", b"5"),
    "another seal": lambda text: text.replace(b"# sha256", b"# sha257"),
}


@pytest.mark.parametrize("damage", TEXT_DAMAGES)
def test_damaged_text_is_named_with_the_repair(tmp_path: Path, damage: str) -> None:
    folder = Folder.at(tmp_path)
    folder.write_sealed_text("x.yaml", "steps: 4\nloss: 1\n")
    assert folder.read_sealed_text("x.yaml") == "steps: 4\nloss: 1\n"
    assert yaml.safe_load(folder.read_bytes("x.yaml")) == {"steps": 4, "loss": 1}
    folder.write_bytes("x.yaml", TEXT_DAMAGES[damage](folder.read_bytes("x.yaml")))
    with pytest.raises(Damaged, match=r"x\.yaml is damaged: .*: copy it back"):
        folder.read_sealed_text("x.yaml", "copy it back")


def test_text_without_a_seal_is_read(tmp_path: Path) -> None:
    Folder.at(tmp_path).write_bytes("x.yaml", b"steps: 4\n")
    assert Folder.at(tmp_path).read_sealed_text("x.yaml") == "steps: 4\n"


def test_file_is_compared_with_its_seal(anywhere: str) -> None:
    folder = Folder.at(anywhere).make()
    folder.write_bytes("x", b"1234")
    seal = folder.seal("x")
    assert seal == FileSeal.of(b"1234") == FileSeal.parse(seal.as_json())
    folder.verify("x", seal)
    for content, reason in ((b"123", "3 bytes of 4"), (b"", "0 bytes of 4"), (b"1235", "checksum")):
        folder.write_bytes("x", content)
        with pytest.raises(Damaged, match=f"x is damaged: .*{reason}"):
            folder.verify("x", seal)
    folder.delete("x")
    with pytest.raises(Damaged, match="x is damaged: it is missing"):
        folder.verify("x", seal)


def test_failed_write_leaves_what_was_there(anywhere: str) -> None:
    """The block raises after a part of the file is written."""
    folder = Folder.at(anywhere).make()
    with pytest.raises(RuntimeError, match="stop"), folder.open_output("new") as file:  # noqa: PT012
        file.write(b"half")
        raise RuntimeError("stop")
    assert folder.names() == []
    if folder.local:  # a store cannot undo what it was sent
        folder.write_bytes("x", b"before")
        with pytest.raises(RuntimeError, match="stop"), folder.open_output("x") as file:  # noqa: PT012
            file.write(b"half")
            raise RuntimeError("stop")
        assert folder.read_bytes("x") == b"before"
        assert folder.names() == ["x"]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
@pytest.mark.parametrize("write", [Folder.write_bytes, lambda folder, name, content: _copy(folder, name, content)])
def test_full_disk_leaves_no_file_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, write: Callable[[Folder, str, bytes], None]
) -> None:
    folder = Folder.at(tmp_path / "folder").make()
    folder.write_bytes("x", b"before")

    def fail(*arguments: Any) -> None:
        raise FULL

    if call == "write":
        monkeypatch.setattr(Path, "open", lambda path, mode: FullFile(path, mode))
    else:
        monkeypatch.setattr(*{"fsync": (os, "fsync"), "rename": (Path, "replace")}[call], fail)
    with pytest.raises(OSError, match="No space left") as raised:
        write(folder, "x", b"after")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, f"{folder}/x")
    assert folder.names() == ["x"]
    assert folder.read_bytes("x") == b"before"


class FullFile(io.FileIO):
    """A file on a disk that is full after two bytes."""

    def write(self, content: Any) -> int:
        super().write(bytes(content)[:2])
        raise FULL


def _copy(folder: Folder, name: str, content: bytes) -> None:
    source = Path(folder.path).parent / "source"
    source.mkdir()
    source.joinpath(name).touch()
    os.truncate(source / name, len(content))
    Folder.at(source).copy([name], folder)


def test_write_that_the_kernel_refuses_leaves_nothing(tmp_path: Path) -> None:
    """The process may write files of 64 kB at most: the kernel refuses the rest, as it does on a full disk."""
    script = (
        "import resource, signal, sys\n"
        "from groundray.storage.folder import Folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "folder = Folder.at(sys.argv[1])\n"
        "try:\n"
        "    folder.write_bytes('x', bytes(2**20))\n"
        "except OSError as error:\n"
        "    print(error.errno, folder.names())\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert ended.stdout == f"{errno.EFBIG} []\n"


def test_file_and_folder_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(number: int) -> None:
        calls.append(f"flush {Path(f'/proc/self/fd/{number}').readlink().name.partition('.')[0]}")
        fsync(number)

    def record_replace(path: Path, target: Path) -> Path:
        calls.append(f"rename to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    folder = Folder.at(tmp_path / "a" / "b").make()
    assert calls == ["flush a", f"flush {tmp_path.name}"]  # the folders that hold new names
    calls.clear()
    folder.write_bytes("x", b"1")
    assert calls == ["flush x", "rename to x", "flush b"]
    calls.clear()
    folder.download(tmp_path / "copy")
    assert "flush x" not in calls


@pytest.mark.parametrize(("number", "named"), [(errno.EACCES, True), (errno.EROFS, True), (errno.ENOTDIR, False)])
def test_a_folder_that_may_not_be_written_to_is_named_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, named: bool
) -> None:
    def refused(self: Folder) -> Folder:
        raise OSError(number, os.strerror(number))  # as pyarrow does, without the file's name

    monkeypatch.setattr(Folder, "make", refused)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        Folder.at(tmp_path / "index").check_room(1, "vectors take", "choose a larger disk")
    assert caught.value.errno == number
    assert (f"{tmp_path}/index" in str(caught.value)) == named
    assert ("allow writing" in str(caught.value)) == named
