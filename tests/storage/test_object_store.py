"""Object stores: URLs, and errors that name the cause within seconds."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from servers import NO_BUCKET, Server

from groundray.storage import object_store
from groundray.storage.folder import Folder
from groundray.storage.object_store import RetryPolicy


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        ("s3://bucket/runs/", pafs.S3FileSystem, "bucket/runs"),
        ("gs://bucket/deep//runs", pafs.GcsFileSystem, "bucket/deep/runs"),
    ],
)
def test_url_gives_filesystem_and_path(
    url: str, kind: type, path: str, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", s3.environment["AWS_ENDPOINT_URL"]
    )  # otherwise pyarrow asks AWS for the region
    folder = Folder.at(url)
    assert isinstance(folder.filesystem, kind)
    assert folder.path == path
    assert str(folder) == f"{url[:2]}://{path}"


@pytest.mark.parametrize(
    "url", ["s3://key:hush-hush@bucket/x", "s3://bucket/x?secret_key=hush-hush", "s3:///x", "gs://"]
)
def test_url_with_other_parts_raises_without_showing_them(url: str) -> None:
    with pytest.raises(ValueError, match=r"(s3|gs)://BUCKET/FOLDER") as caught:
        Folder.at(url)
    assert "hush" not in str(caught.value)


def test_unknown_scheme_raises() -> None:
    for url in ("ftp://host/x", "https://host/x"):
        with pytest.raises(ValueError, match=f"{url}: expected a path, or a URL s3:// or gs://"):
            Folder.at(url)


def seconds_to_fail(url: str, what: str) -> float:
    """Return the seconds until an unusable store raises; the message is one line with the URL, matching `what`."""
    began = time.monotonic()
    with pytest.raises(OSError, match=what) as caught:
        Folder.connect(url)
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)
    return time.monotonic() - began


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_missing_bucket_is_named(scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    server: Server = request.getfixturevalue(scheme)
    server.use(monkeypatch)
    url, what = f"{scheme}://{NO_BUCKET}/x", f"has no bucket {NO_BUCKET}: create it, or correct the URL"
    assert seconds_to_fail(url, what) < 15
    with pytest.raises(OSError, match=what):
        Folder.at(url).write_bytes("y", b"1")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "expected credentials .* SIGNATURE_DOES_NOT_MATCH .*AWS_PROFILE",
        ),
        ({"AWS_ACCESS_KEY_ID": "AKIAWRONG"}, "INVALID_ACCESS_KEY_ID .*AWS_PROFILE"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            "expected an answer from http://127.0.0.1:9, got .*: check the network and AWS_ENDPOINT_URL",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://no-such-host.invalid"},
            "no-such-host.invalid",
        ),
    ],
)
def test_unusable_s3_is_reported_within_seconds(
    s3: Server, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], what: str
) -> None:
    s3.use(monkeypatch, **change)
    assert seconds_to_fail(s3.folder(), what) < 15


def test_s3_without_credentials_is_reported_within_seconds(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch, HOME=str(tmp_path))  # a home without profiles
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert seconds_to_fail(s3.folder(), "expected (credentials|an answer)") < 15


@pytest.mark.thorough  # Google's client looks for a key for ten seconds
def test_gcs_without_credentials_is_reported_within_seconds(
    gs: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.use(monkeypatch, HOME=str(tmp_path), GCE_METADATA_ROOT="127.0.0.1:9")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    assert seconds_to_fail(gs.folder(), "GOOGLE_APPLICATION_CREDENTIALS") < 40


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_silent_endpoint_times_out(s3: Server, silent_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch, AWS_ENDPOINT_URL=silent_endpoint)
    monkeypatch.setattr(object_store, "PROBE_POLICY", RetryPolicy(2, 1.0))
    assert seconds_to_fail(s3.folder(), re.escape(silent_endpoint)) < 15
