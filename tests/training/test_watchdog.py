"""A worker that hangs is ended, and its stack traces are written to the run's folder."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from groundray import distributed
from groundray.storage.folder import Folder
from groundray.training import watchdog
from groundray.training.watchdog import Peers, Watchdog, stacks_since


@pytest.mark.parametrize("other_threads", [0, 110])
def test_worker_without_heartbeat_is_ended_with_its_stack_traces(tmp_path: Path, other_threads: int) -> None:
    """The worker's too where there are more threads than faulthandler writes."""
    reports: list[str] = []
    ended = threading.Event()
    others = [threading.Thread(target=ended.wait, args=(20,)) for _ in range(other_threads)]
    for other in others:
        other.start()
    began = time.time()
    watching = Watchdog(0.2, Folder.at(tmp_path), 1, reports.append, ended.set)

    def hangs_in_here() -> None:
        assert ended.wait(20)

    hangs_in_here()
    watching.close()
    for other in others:
        other.join()
    (name,) = stacks_since(Folder.at(tmp_path), began - 1)
    assert re.match(r"worker 1 .* \d+ s \(scaling.hang_minutes\)", reports[0])
    assert reports[0].endswith(f"{tmp_path}/stacks/{name}")
    assert "hangs_in_here" in (tmp_path / "stacks" / name).read_text()
    assert stacks_since(Folder.at(tmp_path), time.time() + 10) == []


def test_worker_in_a_collective_is_ended_two_graces_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the worker that hangs, which so has time to report its stack traces."""
    reports: list[str] = []
    ended = threading.Event()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda _: ended.wait(20))
    watching = Watchdog(0.5, Folder.at(tmp_path), 0, reports.append, ended.set)
    began = time.monotonic()
    distributed.sum_over_ranks([torch.zeros(1)])
    assert ended.is_set()
    assert time.monotonic() - began > 0.5 + 2 * watchdog.grace(0.5)
    watching.close()
    assert re.match(r"worker 0 .* waited for other workers", reports[0])


@dataclass
class Rank:
    """A rank whose threads are in no collective, as those of one that waits for a GPU. It has begun so many."""

    rank: int
    begun: int
    run: Folder
    board: dict[int, int]
    order: list[int]
    reports: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def watched(self, seconds: float, world_size: int) -> Watchdog:
        def exchange(begun: int) -> dict[int, int]:
            self.board[self.rank] = begun
            return self.board

        def end() -> None:
            self.order.append(self.rank)
            self.ended.set()

        peers = Peers(world_size, "17", exchange, lambda: self.begun)
        return Watchdog(seconds, self.run, self.rank, self.reports.append, end, peers)


@pytest.fixture
def no_timer_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a machine is busy, it would end the tests' own process."""
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: None)


def together(tmp_path: Path, begun: list[int | None], seconds: float = 0.5) -> tuple[list[Rank], list[Watchdog]]:
    """Return ranks that give no heartbeat, and their watchdogs; None for a rank that has none."""
    board, order = dict[int, int](), list[int]()
    ranks = [Rank(rank, own, Folder.at(tmp_path), board, order) for rank, own in enumerate(begun) if own is not None]
    return ranks, [rank.watched(seconds, len(begun)) for rank in ranks]


@pytest.mark.usefixtures("no_timer_in_c")
def test_rank_that_has_begun_fewer_collectives_is_ended_before_those_that_wait_for_it(tmp_path: Path) -> None:
    """Although no rank's thread is in a collective: under NCCL a rank waits where it reads a number."""
    began = time.monotonic()
    (first, hung, third), watchdogs = together(tmp_path, [8, 7, 8])
    assert hung.ended.wait(20)
    assert hung.order == [1]
    assert "worker 1 gave no heartbeat" in hung.reports[0]
    assert "while workers 0, 2 waited for it" in hung.reports[0]
    for waiting in (first, third):  # Ray would have killed them
        assert waiting.ended.wait(20)
        assert "while it waited for worker 1" in waiting.reports[0]
    assert time.monotonic() - began > 0.5 + 2 * watchdog.grace(0.5)
    for watching in watchdogs:
        watching.close()


@pytest.mark.usefixtures("no_timer_in_c")
def test_ranks_that_have_begun_the_same_collectives_are_ended_at_once(tmp_path: Path) -> None:
    """None is known to wait for another: the device or the network hangs."""
    began = time.monotonic()
    ranks, watchdogs = together(tmp_path, [8, 8])
    assert all(rank.ended.wait(20) for rank in ranks)
    assert not any("waited" in rank.reports[0] for rank in ranks)
    assert began + 0.5 < time.monotonic()
    for watching in watchdogs:
        watching.close()


@pytest.mark.usefixtures("no_timer_in_c")
def test_rank_without_a_watchdog_yet_is_waited_for(tmp_path: Path) -> None:
    """As where workers meet for the first time, and one of them does not come."""
    began = time.monotonic()
    (first,), (watching,) = together(tmp_path, [0, None])
    assert first.ended.wait(20)
    assert time.monotonic() - began > 0.5 + 2 * watchdog.grace(0.5)
    assert "while it waited for worker 1" in first.reports[0]
    watching.close()


@pytest.mark.usefixtures("no_timer_in_c")
def test_numbers_of_other_ranks_that_cannot_be_had_end_no_worker_that_works(tmp_path: Path) -> None:
    asked, ended = threading.Event(), threading.Event()

    def exchange(begun: int) -> dict[int, int]:
        asked.set()
        raise ConnectionError("the driver is gone")

    watching = Watchdog(5.0, Folder.at(tmp_path), 0, print, ended.set, Peers(2, "17", exchange))
    assert asked.wait(20)
    watching.heartbeat()
    watching.close()
    assert not ended.is_set()


@pytest.mark.usefixtures("no_timer_in_c")
def test_every_silent_rank_writes_its_flight_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is ended to the run's folder, where the next attempt moves those of the killed ones."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(distributed, "flight_record", lambda: b"last collectives")
    (killed, hung), watchdogs = together(tmp_path / "run", [8, 7], seconds=3)  # 6 s more until rank 0 is ended
    assert hung.ended.wait(20)
    assert hung.run.read_bytes("stacks/flight-17/rank1") == b"last collectives"
    (record,) = temporary.glob("*-17-rank0")
    assert record.read_bytes() == b"last collectives"
    record = record.rename(str(record).replace("-rank0", "-rank2"))  # as if killed: its watchdog drops it no more
    for watching in watchdogs:
        watching.close()
    watchdog.rescue_stacks(killed.run)
    assert sorted(killed.run.names()) == ["stacks"]
    assert sorted((killed.run / "stacks/flight-17").names()) == ["rank1", "rank2"]
    assert not list(temporary.iterdir())


@pytest.mark.usefixtures("no_timer_in_c")
def test_flight_record_of_a_worker_that_goes_on_is_deleted_and_of_one_that_fails_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(distributed, "flight_record", lambda: b"last collectives")
    monkeypatch.setattr(watchdog, "RECORD_AT", 0.0)
    watching = Watchdog(10.0, Folder.at(tmp_path / "run"), 0, print, print, Peers(2, "17", lambda begun: {}))

    def until(found: bool) -> None:
        end = time.monotonic() + 8
        while bool(list(tmp_path.glob("*-17-rank0"))) != found:
            assert time.monotonic() < end
            time.sleep(0.05)

    until(found=True)
    monkeypatch.setattr(watchdog, "RECORD_AT", 0.9)
    watching.heartbeat()
    until(found=False)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(watchdog, "RECORD_AT", 0.0)
    until(found=True)
    watching.close()  # as in a worker that fails because another was ended
    until(found=False)
    assert (tmp_path / "run" / "stacks" / "flight-17" / "rank0").read_bytes() == b"last collectives"


def test_worker_is_ended_although_the_storage_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "REPORT_SECONDS", 0.3)
    released, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(Folder, "write_bytes", lambda *_: released.wait(20))
    watching = Watchdog(0.2, Folder.at(tmp_path), 1, lambda _: None, ended.set)
    assert ended.wait(10)
    released.set()
    watching.close()


def test_report_names_the_local_file_if_the_storage_fails(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("no folder")
    reports: list[str] = []
    ended = threading.Event()
    watching = Watchdog(0.2, Folder.at(tmp_path), 1, reports.append, ended.set)
    assert ended.wait(20)
    watching.close()
    assert re.search(r"/groundray-stacks-[\w-]+\.txt ", reports[0])


def test_half_written_stack_traces_are_ignored(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "stacks").make()
    for name in ("worker-1-1700000000.txt", "worker-1-1700000001.txt.ab12cd34.writing", "notes.txt"):
        folder.write_bytes(name, b"")
    assert stacks_since(Folder.at(tmp_path), 1.6e9) == ["worker-1-1700000000.txt"]


def test_worker_with_heartbeats_is_not_ended(tmp_path: Path) -> None:
    ended = threading.Event()
    watching = Watchdog(2.0, Folder.at(tmp_path), 0, print, ended.set)
    for _ in range(12):
        time.sleep(0.25)
        watching.heartbeat()
    watching.close()
    assert not ended.is_set()
    assert not (tmp_path / "stacks").exists()


def test_temporary_files_of_killed_workers_are_moved_to_the_run_or_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that a thread of C ended has written stack traces, and one that was killed has not. The ids of dead
    processes are used again: here by this one."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(temporary))
    run, other = Folder.at(tmp_path / "run"), Folder.at(tmp_path / "other")
    key, foreign, process = watchdog._key(run), watchdog._key(other), os.getpid()
    files = {
        f"groundray-stacks-{key}-{process}-3-hung.txt": "in hangs_in_c",
        f"groundray-stacks-{key}-{process}-1-killed.txt": "",
        f"groundray-stacks-{foreign}-{process}-1-killed.txt": "",
        f"groundray-stacks-{foreign}-{process}-0-hung.txt": "of another run",
        f"groundray-stacks-{key}-{process}-0-starting.txt": "",
        "groundray-stacks-mine.txt": "",
    }
    for name, text in files.items():
        (temporary / name).write_text(text)
    age = time.time() - 2 * watchdog.LOCK_SECONDS
    for name in list(files)[1:3]:
        os.utime(temporary / name, (age, age))
    began = time.time() - 1
    watching = Watchdog(60, run, 0, lambda _: None)
    watching.close()
    assert sorted(path.name for path in temporary.iterdir()) == sorted(list(files)[3:])
    (moved,) = stacks_since(run, began)
    assert moved.startswith("worker-3-")
    assert run.read_bytes(f"stacks/{moved}") == b"in hangs_in_c"


def test_temporary_file_of_a_living_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another container may share the temporary folder, and count processes for itself."""
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(tmp_path))
    run = Folder.at(tmp_path / "run")
    watching = Watchdog(60, run, 0, lambda _: None)
    (file,) = tmp_path.glob("groundray-stacks-*")
    file = file.rename(re.sub(r"-\d+-0-", "-999999999-0-", str(file)))
    for text in ("", "its stack traces"):
        file.write_text(text)
        os.utime(file, (1, 1))
        watchdog.rescue_stacks(run)
        assert file.exists()
    assert not (tmp_path / "run").exists()
    watching.close()  # the lock is released
    watchdog.rescue_stacks(run)
    assert not file.exists()


def test_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog.tempfile, "tempdir", str(tmp_path))
    # the timer in C would end the tests' own process where a write takes longer than the short timeout
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    ended = threading.Event()
    for seconds in (60, 0.1):
        watching = Watchdog(seconds, Folder.at(tmp_path / "run"), 1, lambda _: None, ended.set)
        assert seconds == 60 or ended.wait(20)
        watching.close()
        assert not list(tmp_path.glob("groundray-stacks-*"))
