"""A worker that hangs is ended, and says what it was doing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from groundray.storage import Folder
from groundray.training.watchdog import Watchdog, stacks_since


def test_a_worker_that_gives_no_sign_is_ended_with_its_stacks(tmp_path: Path) -> None:
    told: list[str] = []
    ended = threading.Event()
    began = time.time()
    watchdog = Watchdog(0.2, Folder.at(tmp_path), 1, told.append, ended.set)

    def hangs_in_here() -> None:
        assert ended.wait(20)

    hangs_in_here()
    watchdog.close()
    (name,) = stacks_since(Folder.at(tmp_path), began - 1)
    assert told[0].startswith("worker 1 gave no sign of life for 0 s")
    assert told[0].endswith(f"{tmp_path}/stacks/{name}")
    assert "hangs_in_here" in (tmp_path / "stacks" / name).read_text()
    assert stacks_since(Folder.at(tmp_path), time.time() + 10) == []


def test_a_worker_that_gives_signs_is_left_alone(tmp_path: Path) -> None:
    ended = threading.Event()
    watchdog = Watchdog(2.0, Folder.at(tmp_path), 0, print, ended.set)
    for _ in range(12):
        time.sleep(0.25)
        watchdog.alive()
    watchdog.close()
    assert not ended.is_set()
    assert not (tmp_path / "stacks").exists()
