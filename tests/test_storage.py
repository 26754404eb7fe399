"""A folder reads and writes whole files, and nothing outside itself: here, on S3, and on Google Cloud Storage."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from servers import NO_BUCKET, Server

from groundray.storage import object_store
from groundray.storage.folder import Folder, format_bytes
from groundray.storage.object_store import RetryPolicy

BAD_NAMES = ["../other", "/etc/passwd", "a/../../other", "nul\0"]


def test_what_is_written_is_read(anywhere: str) -> None:
    folder = Folder.at(anywhere).make()
    folder.write_bytes("x.bin", b"\x00\x01")
    folder.write_json("y.json", {"ü": [1, 2]})
    folder.write_bytes("x.bin", b"\x02")
    assert folder.read_bytes("x.bin") == b"\x02"
    assert folder.read_json("y.json") == {"ü": [1, 2]}
    assert folder.names() == ["x.bin", "y.json"]  # and nothing that was set aside


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_leaves_the_folder_is_refused(anywhere: str, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name inside"):
        Folder.at(anywhere).read_bytes(name)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (158e6, "158 MB"), (23.74e9, "23.7 GB")]
)
def test_sizes_are_told_in_the_unit_that_suits(count: float, shown: str) -> None:
    assert format_bytes(int(count)) == shown


def test_a_folder_that_is_not_there_is_empty(anywhere: str) -> None:
    folder = Folder.at(anywhere)
    assert not folder.exists()
    assert folder.names() == folder.files() == []
    folder.delete("nothing")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")


def test_folders_are_listed_and_deleted_with_all_that_is_in_them(anywhere: str) -> None:
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
    (source / "large").write_bytes(bytes(range(256)) * 80_000)  # in parts, to a store
    folder = Folder.at(anywhere)
    folder.upload(source, "model")
    assert folder.read_bytes("model/deep/file") == b"content"
    (folder / "model").download(tmp_path / "back")
    assert (tmp_path / "back" / "deep" / "file").read_text() == "content"
    assert (tmp_path / "back" / "large").read_bytes() == (source / "large").read_bytes()
    (folder / "model").copy(["deep/file"], folder / "other")
    assert folder.read_bytes("other/deep/file") == b"content"
    with (folder / "model").local_copy() as here:
        assert (here / "deep" / "file").read_text() == "content"
    assert here.exists() == folder.local
    folder.delete("model")
    assert not folder.exists("model")


def test_a_file_url_is_the_same_folder(tmp_path: Path) -> None:
    Folder.at(tmp_path).write_bytes("x", b"1")
    assert Folder.at(f"file://{tmp_path}").read_bytes("x") == b"1"


def test_a_folder_goes_to_another_process(anywhere: str) -> None:
    """As Ray sends it: opened there, however many threads the client has here."""
    folder = Folder.at(anywhere).make()
    assert pickle.loads(pickle.dumps(folder)) == folder  # noqa: S301
    process = multiprocessing.get_context("spawn").Process(target=folder.write_bytes, args=("x", b"1"))
    process.start()
    process.join()
    assert folder.read_bytes("x") == b"1"


def test_a_sealed_file_is_known_to_be_damaged(anywhere: str) -> None:
    folder = Folder.at(anywhere).make()
    folder.write_sealed("x.json", {"steps": 4})
    assert folder.read_sealed("x.json") == {"steps": 4}
    folder.write_bytes("x.json", folder.read_bytes("x.json").replace(b"4", b"5"))
    with pytest.raises(ValueError, match=r"x\.json is damaged"):
        folder.read_sealed("x.json")


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        ("s3://bucket/runs/", pafs.S3FileSystem, "bucket/runs"),
        ("gs://bucket/deep//runs", pafs.GcsFileSystem, "bucket/deep/runs"),
    ],
)
def test_a_url_is_a_filesystem_and_a_path(
    url: str, kind: type, path: str, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.environment["AWS_ENDPOINT_URL"])  # else AWS is asked for the region
    folder = Folder.at(url)
    assert isinstance(folder.filesystem, kind)
    assert folder.path == path
    assert str(folder) == f"{url[:2]}://{path}"


@pytest.mark.parametrize(
    "url", ["s3://key:hush-hush@bucket/x", "s3://bucket/x?secret_key=hush-hush", "s3:///x", "gs://"]
)
def test_a_url_is_a_bucket_and_a_folder_and_no_more(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected (s3|gs)://BUCKET/FOLDER and nothing besides, got ") as caught:
        Folder.at(url)
    assert "hush" not in str(caught.value)


def test_a_scheme_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="ftp"):
        Folder.at("ftp://host/x")


def seconds_to_refuse(url: str, what: str) -> float:
    """For how long a store is looked at that cannot be used; the error is one line that has the URL and `what`."""
    began = time.monotonic()
    with pytest.raises(OSError, match=what) as caught:
        Folder.connect(url)
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)
    return time.monotonic() - began


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_that_is_not_there_is_named(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server: Server = request.getfixturevalue(scheme)
    server.use(monkeypatch)
    url, what = f"{scheme}://{NO_BUCKET}/x", f"has no bucket {NO_BUCKET}: create it"
    assert seconds_to_refuse(url, what) < 15
    with pytest.raises(OSError, match=what):
        Folder.at(url).write_bytes("y", b"1")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "expected credentials .* SIGNATURE_DOES_NOT_MATCH .* give others .*AWS_PROF",
        ),
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "expected credentials .* INVALID_ACCESS_KEY_ID .* give others"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "expected an answer of http://127.0.0.1:9, got .* AWS_ENDPOINT_URL",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://no-such-host.invalid"},
            "got Could not resolve host: no-such-host.invalid: see to",
        ),
    ],
)
def test_an_s3_that_cannot_be_used_is_one_line_within_seconds(
    s3: Server, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], what: str
) -> None:
    s3.use(monkeypatch, **change)
    assert seconds_to_refuse(s3.folder(), what) < 15


def test_an_s3_without_any_key_is_one_line_within_seconds(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch, HOME=str(tmp_path))  # where profiles are
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert seconds_to_refuse(s3.folder(), "expected ") < 15


def test_a_gcs_without_credentials_is_one_line_within_seconds(
    gs: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.use(monkeypatch, HOME=str(tmp_path), GCE_METADATA_ROOT="127.0.0.1:9")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    assert seconds_to_refuse(gs.folder(), "expected credentials .*GOOGLE_APPLICATION_CREDENTIALS") < 40


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_an_endpoint_that_says_nothing_is_not_waited_for(
    s3: Server, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch, AWS_ENDPOINT_URL=silent)
    monkeypatch.setattr(object_store, "PROBE_POLICY", RetryPolicy(2, 1.0))
    assert seconds_to_refuse(s3.folder(), f"expected an answer of {silent}, got ") < 15
