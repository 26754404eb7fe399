"""One process makes a file, others wait for it, and a process that is killed is replaced."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from groundray.storage import made_once as module
from groundray.storage import owner
from groundray.storage.folder import Folder
from groundray.storage.made_once import MAKING, made_once
from groundray.storage.seals import Damaged

KILLED = """
import os, signal, sys
from groundray.storage.folder import Folder
from groundray.storage.made_once import made_once

folder = Folder.at(sys.argv[1])

def make():
    with folder.open_output("x") as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

made_once(folder, "x", ["x"], lambda: folder.read_bytes("x"), make, print)
"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)


def made(folder: Folder, times: list[int], notes: list[str], seconds: float = 0.0) -> bytes:
    def make() -> None:
        times.append(1)
        time.sleep(seconds)
        folder.write_bytes("x", b"made")

    return made_once(folder, "x", ["x"], lambda: folder.read_bytes("x"), make, notes.append)


def test_one_of_many_makes_it(anywhere: str) -> None:
    folder, times, notes, results = Folder.at(anywhere).make(), list[int](), list[str](), list[bytes]()
    threads = [threading.Thread(target=lambda: results.append(made(folder, times, notes, seconds=1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [b"made"] * 4
    assert times == [1]
    assert 1 <= sum("waiting" in note for note in notes) <= 3
    assert folder.names() == ["x"]
    assert made(folder, times, notes) == b"made"
    assert times == [1]


def test_a_killed_process_is_replaced_and_its_rest_deleted(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert ended.returncode == -9
        left = [name for name in folder.names() if name != MAKING]
        assert len(left) == 1
        assert left[0].endswith(".writing")
    times, notes = list[int](), list[str]()
    assert made(folder, times, notes) == b"made"
    assert (times, notes) == ([1], [])
    assert folder.names() == ["x"]


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.at(tmp_path)

    def refused(self: Folder) -> Folder:
        raise OSError(errno.EROFS, "Read-only file system", self.path)

    with monkeypatch.context() as patches:
        patches.setattr(Folder, "make", refused)
        with pytest.raises(OSError, match="allow writing") as caught:
            made(folder, [], [])
    assert caught.value.errno == errno.EROFS
    assert f"{folder}/x" in str(caught.value)
    assert caught.value.filename.startswith(str(tmp_path))
    assert made(folder, [], []) == b"made"


def test_a_process_elsewhere_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process on another machine only its heartbeat is seen."""
    folder, times, notes = Folder.at(tmp_path), list[int](), list[str]()
    work = folder / MAKING
    other = (work / "x-00000000").make()
    beat = {"host": "elsewhere", "process": 1, "started": 1.0, "id": "a"}
    other.write_json(owner.OWNER, beat | {"time": time.time()})
    work.write_sealed("x-0001.json", {"holder": other.name})
    monkeypatch.setattr(owner, "LOOK_SECONDS", 0.05)

    def ends() -> None:
        for _ in range(10):
            time.sleep(0.05)
            other.write_json(owner.OWNER, beat | {"time": time.time()})
        folder.write_bytes("x", b"theirs")
        work.delete("x-0001.json")

    thread = threading.Thread(target=ends)
    thread.start()
    assert made(folder, times, notes) == b"theirs"
    thread.join()
    assert times == []

    folder.delete("x")
    work.write_sealed("x-0001.json", {"holder": other.name})
    other.write_json(owner.OWNER, beat | {"time": time.time()})
    monkeypatch.setattr(owner, "WATCH_SECONDS", 0.3)
    assert made(folder, times, notes) == b"made"  # no heartbeat any more
    assert times == [1]


def test_what_is_damaged_is_made_again_with_a_note(tmp_path: Path) -> None:
    folder, notes = Folder.at(tmp_path), list[str]()
    folder.write_bytes("x", b"bad")

    def read() -> bytes:
        content = folder.read_bytes("x")
        if content != b"made":
            raise Damaged(f"{folder}/x", "it is bad", "wait")
        return content

    assert made_once(folder, "x", ["x"], read, lambda: folder.write_bytes("x", b"made"), notes.append) == b"made"
    assert notes == [f"{folder}/x is made again: it is bad"]
    folder.write_bytes("x", b"bad")
    with pytest.raises(Damaged):
        made_once(folder, "x", ["x"], read, lambda: None, notes.append)
    assert folder.names() == ["x"]


def test_a_failure_is_raised_and_leaves_no_claim(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)

    def fail() -> None:
        raise ValueError("no room")

    for _ in range(2):
        with pytest.raises(ValueError, match="no room"):
            made_once(folder, "x", ["x"], lambda: folder.read_bytes("x"), fail, pytest.fail)
    assert folder.names() == []


def test_a_process_begins_while_another_deletes_the_folder_of_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the folder's creation and that of the folder in it."""
    folder, times, notes, make = Folder.at(tmp_path), list[int](), list[str](), Folder.make
    interrupted: list[str] = []

    def interrupt(own: Folder) -> Folder:
        if own.parent.name == MAKING and not interrupted:
            interrupted.append(own.name)
            raise FileNotFoundError(own.path)
        return make(own)

    monkeypatch.setattr(Folder, "make", interrupt)
    assert made(folder, times, notes) == b"made"
    assert len(interrupted) == 1
    assert folder.names() == ["x"]
