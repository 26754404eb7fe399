"""Atomic folders: complete or absent, whenever a process is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from servers import Server

from groundray.data.schema import Dataset
from groundray.storage.atomic import atomic_folder, is_empty
from groundray.storage.folder import Folder


def test_sigkill_leaves_no_partial_folder(tmp_path: Path) -> None:
    """A process is killed while it writes; the next one completes the folder."""
    out = tmp_path / "shards"
    script = (
        "import sys\n"
        "from groundray.storage.atomic import atomic_folder\n"
        "from groundray.data.shards import write_shards\n"
        "from groundray.storage.folder import Folder\n"
        "row = {'image': b'x' * 2**16, 'width': 8, 'height': 8, 'captions': ['a']}\n"
        "rows = ({'id': str(i), **row} for i in range(int(sys.argv[2])))\n"
        "with atomic_folder(Folder.at(sys.argv[1]), marker='dataset.json') as staging:\n"
        "    write_shards(staging, 'captions', rows, {}, {}, row_group_bytes=2**17)\n"
    )
    endless = subprocess.Popen([sys.executable, "-c", script, str(out), str(10**9)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/shard-00001.parquet")) and not list(tmp_path.glob(".*/shard-00001.parquet")):
        assert time.monotonic() < deadline, "no shard was written"
        time.sleep(0.02)
    endless.send_signal(signal.SIGKILL)
    endless.wait()
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1  # the staging folder

    subprocess.run([sys.executable, "-c", script, str(out), "5"], check=True)
    assert list(tmp_path.iterdir()) == [out]
    assert Dataset.open(str(out)).rows == 5


def test_folder_appears_complete_or_not_at_all(anywhere: str) -> None:
    out = Folder.at(anywhere) / "data"
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(out, "index") as staging:  # noqa: PT012
        (staging / "part").make().write_bytes("half", b"x")
        raise RuntimeError("stop")
    assert out.parent.names() == []
    assert is_empty(out)

    for round in ("first", "second"):
        with atomic_folder(out, "index") as staging:
            (staging / "part").make().write_bytes(round, b"new")
            (staging / "part").write_bytes("index", b"last")
            assert out.names() == ([] if round == "first" else ["part"])
        assert set(out.files()) == {"part/index", f"part/{round}"}
        assert out.parent.names() == ["data"]
        assert not is_empty(out)


def test_stale_staging_folder_is_deleted(anywhere: str) -> None:
    out = Folder.at(anywhere) / "data"
    stale = out.parent / (".data.writing-999999999" if out.local else ".writing/data-0123abcd")
    stale.make().write_json("begun.json", {"time": time.time() - 8 * 24 * 3600})
    other = out.parent / ".writing/other-0123abcd"
    other.make().write_json("begun.json", {"time": 0})
    with atomic_folder(out, "index") as staging:
        staging.write_bytes("index", b"")
        assert not stale.exists()
    assert other.exists("begun.json")  # of another folder, which another process may write


def test_partly_copied_folder_counts_as_empty(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is killed while it copies the files to their path; the next one copies all of them."""
    s3.use(monkeypatch)
    out = Folder.at(s3.folder())
    real = Folder.copy

    def killed(folder: Folder, names: Sequence[str], other: Folder) -> None:
        real(folder, names, other)
        raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "copy", killed)
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, "index") as staging:  # noqa: PT012
        for name in ("index", "shard"):
            staging.write_bytes(name, b"1")
    monkeypatch.setattr(Folder, "copy", real)
    assert "shard" in out.names()
    assert "index" not in out.names()
    assert is_empty(out)
    with atomic_folder(out, "index") as staging:
        staging.write_bytes("index", b"2")
    assert out.files() == ["index"]
    with pytest.raises(ValueError, match="bucket itself"), atomic_folder(out.parent, "index"):
        pass
