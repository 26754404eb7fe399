"""A worker that hangs is ended, and says what it was doing."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
import torch

from groundray import distributed
from groundray.storage.folder import Folder
from groundray.training import watchdog
from groundray.training.watchdog import Watchdog, stacks_since


def test_a_worker_that_gives_no_sign_is_ended_with_its_stacks(tmp_path: Path) -> None:
    told: list[str] = []
    ended = threading.Event()
    began = time.time()
    one = Watchdog(0.2, Folder.at(tmp_path), 1, told.append, ended.set)

    def hangs_in_here() -> None:
        assert ended.wait(20)

    hangs_in_here()
    one.close()
    (name,) = stacks_since(Folder.at(tmp_path), began - 1)
    assert re.match(r"worker 1 gave no sign of life for \d+ s \(scaling.hang_minutes\) and is ended; ", told[0])
    assert told[0].endswith(f"{tmp_path}/stacks/{name}")
    assert "hangs_in_here" in (tmp_path / "stacks" / name).read_text()
    assert stacks_since(Folder.at(tmp_path), time.time() + 10) == []


def test_a_worker_that_waits_for_others_is_ended_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the one that hangs, so that there is time to say which that is."""
    told: list[str] = []
    ended = threading.Event()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda _: ended.wait(20))
    one = Watchdog(0.5, Folder.at(tmp_path), 0, told.append, ended.set)
    began = time.monotonic()
    distributed.sum_over_ranks([torch.zeros(1)])
    assert ended.is_set()
    assert time.monotonic() - began > 0.5 + 2 * watchdog.grace(0.5)
    one.close()
    assert re.match(r"worker 0 gave no sign of life for \d+ s, waiting for others that it could not reach, ", told[0])


def test_a_worker_whose_storage_hangs_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "REPORT_SECONDS", 0.3)
    released, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(Folder, "write_bytes", lambda *_: released.wait(20))
    one = Watchdog(0.2, Folder.at(tmp_path), 1, lambda _: None, ended.set)
    assert ended.wait(10)
    released.set()
    one.close()


def test_stacks_that_cannot_be_brought_to_the_run_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("no folder")
    told: list[str] = []
    ended = threading.Event()
    one = Watchdog(0.2, Folder.at(tmp_path), 1, told.append, ended.set)
    assert ended.wait(20)
    one.close()
    assert told[0].endswith(".txt on its machine")


def test_what_a_killed_process_was_writing_is_no_stack(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "stacks").make()
    for name in ("worker-1-1700000000.txt", "worker-1-1700000001.txt.ab12cd34.writing", "notes.txt"):
        folder.write_bytes(name, b"")
    assert stacks_since(Folder.at(tmp_path), 1.6e9) == ["worker-1-1700000000.txt"]


def test_a_worker_that_gives_signs_is_left_alone(tmp_path: Path) -> None:
    ended = threading.Event()
    one = Watchdog(2.0, Folder.at(tmp_path), 0, print, ended.set)
    for _ in range(12):
        time.sleep(0.25)
        one.heartbeat()
    one.close()
    assert not ended.is_set()
    assert not (tmp_path / "stacks").exists()
