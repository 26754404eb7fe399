"""Atomic folders: complete or absent, whenever a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import own_time
import pytest
from servers import Server

from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.storage import owner
from groundray.storage.atomic import atomic_folder, is_empty, recover, resumable_folder
from groundray.storage.folder import Folder
from groundray.storage.owner import has_ended, owned


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
    while not list(tmp_path.glob(".*/new/shard-00001.parquet")):
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


def leave(work: Folder, **changes: Any) -> Folder:
    """Leave a work folder as a process of another machine would that is killed 20 minutes ago, with changes."""
    state = {"host": "elsewhere", "process": 1, "started": 1.0, "time": time.time() - 20 * 60}
    work.make().write_json("owner.json", state | changes)
    return work


def age(folder: Path) -> None:
    """Make a folder and everything in it old."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0))


def works_of(out: Folder) -> Folder:
    """Return the folder that holds work folders, and the beginning of the names of those of `data`."""
    return out.parent if out.local else out.parent / ".writing"


def prefix(out: Folder) -> str:
    return ".data.writing-" if out.local else "data-"


def test_only_what_an_ended_process_left_is_deleted(anywhere: str) -> None:
    out = Folder.at(anywhere) / "data"
    with owned((Folder.at(anywhere) / "mine").make()):
        mine = (Folder.at(anywhere) / "mine").read_json("owner.json")
    alive = {
        "of this process": leave(works_of(out) / f"{prefix(out)}01", **{**mine, "time": 0.0}),
        "with a heartbeat": leave(works_of(out) / f"{prefix(out)}02", time=time.time() - 60),
        "with the same id elsewhere": leave(works_of(out) / f"{prefix(out)}03", **{**mine, "host": "other-pod"}),
        "of another folder": leave(works_of(out) / prefix(out).replace("data", "other") / "01"),
        "of a longer name": leave(works_of(out) / (".data.writing-b.writing-01" if out.local else "data-b-01")),
        "whose owner is not written yet": works_of(out) / f"{prefix(out)}04",
    }
    (works_of(out) / f"{prefix(out)}04").make().write_bytes("shard", b"")
    ended = {
        "without a heartbeat": leave(works_of(out) / f"{prefix(out)}05"),
        "of a process id that is used again": leave(works_of(out) / f"{prefix(out)}06", **{**mine, "started": 5.0}),
        "of a process that is gone": leave(works_of(out) / f"{prefix(out)}07", **{**mine, "process": 2**22 + 1}),
    }
    with atomic_folder(out, "index") as staging:
        staging.write_bytes("index", b"")
    assert [what for what, work in alive.items() if not work.files()] == []
    assert [what for what, work in ended.items() if work.files()] == []


def test_a_process_that_proc_hides_is_judged_by_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid=2, /proc has no folder for a process of another user, and a signal to it is refused."""
    process = 2**22 + 1  # no process has it

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with owned(Folder.at(tmp_path / "mine").make()):
        mine = Folder.at(tmp_path / "mine").read_json("owner.json")
    alive = leave(Folder.at(tmp_path / "alive"), **{**mine, "process": process, "time": time.time() - 60})
    silent = leave(Folder.at(tmp_path / "silent"), **{**mine, "process": process, "time": time.time() - 3600})
    assert has_ended(alive)  # there is no such process
    monkeypatch.setattr(os, "kill", refuse)
    assert not has_ended(alive)
    assert has_ended(silent)


def test_names_with_wildcards_are_names(tmp_path: Path) -> None:
    other = leave(Folder.at(tmp_path / ".other.writing-0123"))
    mine = leave(Folder.at(tmp_path / ".[o]ther.writing-0123"))
    with atomic_folder(Folder.at(tmp_path / "[o]ther"), "index") as staging:
        staging.write_bytes("index", b"")
    assert other.exists()
    assert not mine.exists()


def test_processes_with_one_id_write_folders_side_by_side(anywhere: str) -> None:
    """Pods count processes from 1. Equal results are one result; of different ones the first stays."""
    out = Folder.at(anywhere) / "data"
    with atomic_folder(out, "index") as slow:
        with atomic_folder(out, "index") as fast:
            fast.write_bytes("index", b"same")
        slow.write_bytes("index", b"same")
    assert out.files() == ["index"]
    another = pytest.raises(FileExistsError, match="another command has written something else")
    with another, atomic_folder(out, "index") as slow:
        with atomic_folder(out, "index") as fast:
            fast.write_bytes("index", b"1")
        slow.write_bytes("index", b"2")
    assert out.read_bytes("index") == b"1"
    assert out.parent.names() == ["data"]


def test_a_link_stays_and_the_folder_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "shards").mkdir(parents=True)
    link = tmp_path / "shards"
    link.symlink_to(disk / "shards")
    for number in range(2):
        with atomic_folder(Folder.at(link), "dataset.json") as staging:
            staging.write_json("dataset.json", number)
            assert str(staging).startswith(f"{disk}/")
    assert link.is_symlink()
    assert Folder.at(disk / "shards").read_json("dataset.json") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "shards"]
    assert [path.name for path in disk.iterdir()] == ["shards"]


def test_a_whole_disk_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match="/FOLDER"), atomic_folder(Folder.at("/"), "dataset.json"):
        pytest.fail("the block began")


def test_interrupt_leaves_nothing_behind(anywhere: str) -> None:
    out = Folder.at(anywhere) / "deep" / "data"
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, "index") as staging:  # noqa: PT012
        staging.write_bytes("index", b"")
        raise KeyboardInterrupt
    assert Folder.at(anywhere).files() == []
    assert not out.local or not Path(anywhere).exists()


KILLED = """
import os, signal, sys, time
from groundray.storage import atomic, owner
from groundray.storage.folder import Folder
from pathlib import Path

at, out = int(sys.argv[1]), Folder.at(sys.argv[2])
steps = 0

def killed(function):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step

for owner_class, names in ((Path, ("mkdir", "rename")), (Folder, ("write_bytes", "delete", "_copy"))):
    for name in names:
        setattr(owner_class, name, killed(getattr(owner_class, name)))
atomic.shutil.rmtree = killed(atomic.shutil.rmtree)
with atomic.atomic_folder(out, "index") as staging:
    for name in ("a/shard", "b/shard", "a/index", "b/index"):
        (staging / name.partition("/")[0]).make().write_bytes(name.partition("/")[2], b"new")
print("done", steps)
"""
FILES = ("a/index", "a/shard", "b/index", "b/shard")


@pytest.mark.thorough
@pytest.mark.parametrize("anywhere", ["local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_sigkill_at_each_step_leaves_the_old_folder_or_the_new(anywhere: str) -> None:
    """Every call that changes the storage, just before and just after it; the next command repairs what is left."""
    out = Folder.at(anywhere) / "data"
    outcomes: set[bytes] = set()
    at = 0
    while True:
        at += 1
        for name in ("a", "b"):
            (out / name).make().write_bytes("shard", b"old")
            (out / name).write_bytes("index", b"old")
        child = subprocess.run([sys.executable, "-c", KILLED, str(at), str(out)], capture_output=True, text=True)
        for work in (
            works_of(out).names() if out.local else []
        ):  # one that had no time to name its owner is kept a while
            if work != "data" and not (out.parent / work).exists("owner.json"):
                age(Path(out.parent.path) / work)
        recover(out, "index")
        assert out.files() == sorted(FILES)
        (content,) = {out.read_bytes(name) for name in FILES}
        assert out.parent.names() == ["data"]
        if child.returncode == 0:
            assert content == b"new"
            break
        assert child.returncode == -signal.SIGKILL, child.stderr
        outcomes.add(content)
    assert outcomes == {b"old", b"new"}
    assert at > 10


def test_reader_puts_back_what_a_killed_process_set_aside(tmp_path: Path) -> None:
    out = Folder.at(tmp_path / "data" / "train").make()
    write_shards(out, "captions", [{"id": "1", "image": b"", "width": 1, "height": 1, "captions": []}], {}, {})
    work = tmp_path / ".data.writing-0123456789ab"
    for name in (".data.writing-0123456789ab", ".data.writing-before-17"):
        work = tmp_path / name
        if "before" in name:  # as earlier versions named it
            (tmp_path / "data").rename(work)
            age(work)
        else:
            leave(Folder.at(work), time=time.time())
            (tmp_path / "data").rename(work / "old")
            with pytest.raises(
                FileNotFoundError, match=rf"process 1 on elsewhere.* move {work}/old to {tmp_path}/data"
            ):
                Dataset.open(str(out))
            leave(Folder.at(work))
        assert Dataset.open(str(out)).rows == 1


@pytest.mark.parametrize("anywhere", ["s3", "gs"], indirect=True)
def test_interrupted_move_in_a_store_is_completed(anywhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first interrupt comes too late. After a second, the next command completes the copy, once the owner is gone."""
    out = Folder.at(anywhere) / "data"
    real, raised = Folder.copy, []

    def interrupted(folder: Folder, names: Sequence[str], other: Folder) -> None:
        real(folder, names, other)
        if len(raised) < limit:
            raised.append(1)
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "copy", interrupted)
    limit = 1
    with atomic_folder(out, "index") as staging:
        for name in ("index", "shard"):
            staging.write_bytes(name, b"1")
    assert out.files() == ["index", "shard"]

    limit = 3
    with pytest.raises(KeyboardInterrupt), atomic_folder(out, "index") as staging:  # noqa: PT012
        for name in ("index", "shard"):
            staging.write_bytes(name, b"2")
    assert "index" not in out.names()
    assert is_empty(out)
    with pytest.raises(OSError, match=r"another command moves files there \(process \d+ on "):  # this one is alive
        recover(out, "index")
    with pytest.raises(FileNotFoundError, match=r"moves files to .*/data .* rerun it"):
        Dataset.open(str(out / "train"))
    (work,) = (out.parent / ".writing").names()
    leave(out.parent / ".writing" / work)
    recover(out, "index")
    assert {name: out.read_bytes(name) for name in out.files()} == {"index": b"2", "shard": b"2"}
    assert out.parent.names() == ["data"]


def test_bucket_itself_is_refused(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch)
    with pytest.raises(ValueError, match="bucket itself"), atomic_folder(Folder.at(s3.folder()).parent, "index"):
        pass


def interrupt(out: Folder, content: str, record: str | None, error: BaseException | None = None) -> list[str]:
    """Write a file and a record, and raise an error; returns the records that were there before."""
    with (  # noqa: PT012
        pytest.raises(BaseException, match="stop"),
        resumable_folder(out, "index", content) as staging,
    ):
        before = staging.records.names()
        staging.new.write_bytes(f"of {content}", b"")
        if record:
            staging.records.write_bytes(record, b"")
        raise error or KeyboardInterrupt("stop")
    return before


def test_an_interrupted_folder_with_records_is_gone_on_with(anywhere: str) -> None:
    out = Folder.at(anywhere) / "data"
    assert interrupt(out, "a", None) == []
    assert out.parent.names() == []  # without a record nothing is kept
    assert interrupt(out, "a", "1") == []
    assert interrupt(out, "a", "2", OSError("stop")) == ["1"]
    assert interrupt(out, "a", None) == ["1", "2"]
    assert interrupt(out, "b", "3") == []  # other content: what was left is deleted
    assert interrupt(out, "a", "4") == []
    recover(out, "index", "a")
    with resumable_folder(out, "index", "a") as first, resumable_folder(out, "index", "a") as second:
        assert first.records.names() == ["4"]
        assert second.records.names() == []  # of two at once, one goes on
        assert first.new != second.new
        for staging in (first, second):
            staging.new.write_bytes("index", b"same")
    assert sorted(out.files()) in (["index"], ["index", "of a"])
    assert out.parent.names() == ["data"]
    assert interrupt(out, "a", "5", ValueError("stop")) == []
    assert out.parent.names() == ["data"]  # data that cannot be used will not be later
    assert interrupt(out, "a", "5") == []
    recover(out, "index")
    assert out.parent.names() == ["data"]


@pytest.mark.parametrize("anywhere", ["local"], indirect=True)
@pytest.mark.parametrize("beats", [True, False])
def test_an_owner_on_another_machine_is_watched(anywhere: str, beats: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Folder.at(anywhere) / "data"
    interrupt(out, "a", "1")
    (work,) = (out.parent / name for name in out.parent.names())
    leave(work, time=time.time() - 60)
    monkeypatch.setattr(owner, "WATCH_SECONDS", 0.05)

    def sleep(seconds: float) -> None:
        if beats:
            leave(work)

    own_time.give(monkeypatch, owner, sleep=sleep)
    told: list[str] = []
    monkeypatch.setattr(owner, "STALE_SECONDS", 3600.0)
    with resumable_folder(out, "index", "a", told.append) as staging:
        assert staging.records.names() == ([] if beats else ["1"])
        staging.new.write_bytes("index", b"")
    assert len(told) == 1
    assert "process 1 on elsewhere" in told[0]
