"""Parts are written by processes at the same time; those of a process that is killed by others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from groundray.data import part_processes
from groundray.data.parts import PartTask, Record
from groundray.data.sources.protocol import Row
from groundray.data.sources.reading import Reading
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class Meeting:
    """A part of a line of text whose reader waits until another part's has begun too."""

    folder: Path
    number: int

    def rows(self, reading: Reading) -> Iterator[Row]:
        (self.folder / f"begun-{self.number}").touch()
        yield {"id": f"{self.number}", "text": "first"}
        end = time.monotonic() + 60
        while len(list(self.folder.glob("begun-*"))) < 2:
            if time.monotonic() > end:
                raise OSError("no other part was begun")
            time.sleep(0.01)


@dataclass(frozen=True)
class Lines:
    """A part of lines of text, whose first `kills` readers are killed, and which may be impossible to read."""

    folder: Path
    number: int
    kills: int = 0
    error: str = ""

    def rows(self, reading: Reading) -> Iterator[Row]:
        yield {"id": f"{self.number}.0", "text": "first"}
        killed = len(list(self.folder.glob(f"killed-{self.number}-*")))
        if killed < self.kills:
            (self.folder / f"killed-{self.number}-{killed}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error:
            raise OSError(self.error)
        yield {"id": f"{self.number}.1", "text": "second"}


def tasks(folder: Path, parts: Sequence[Lines | Meeting]) -> Iterator[PartTask]:
    new, records = (Folder.at(folder / name).make() for name in ("new", "records"))
    for part in parts:
        name = f"shard-{part.number:05d}-{{:03d}}.parquet"
        yield PartTask(part, part.number, new, records, name, "text", {}, 2**20)


def test_two_processes_write_two_parts_at_the_same_time(tmp_path: Path) -> None:
    whole: list[int] = []
    parts = [Meeting(tmp_path, number) for number in range(2)]
    part_processes.write_parts(tasks(tmp_path, parts), 2, lambda _, parts: whole.append(parts))
    assert sum(whole) == 2


def test_the_part_of_a_killed_process_is_written_by_another(tmp_path: Path) -> None:
    read: list[tuple[int, int]] = []
    parts = [Lines(tmp_path, number, kills=number == 1) for number in range(5)]
    part_processes.write_parts(tasks(tmp_path, parts), 2, lambda *numbers: read.append(numbers))
    records = [Record.read(Folder.at(tmp_path / "records"), number) for number in range(5)]
    assert [record.counts for record in records] == [{"lines": 2}] * 5
    assert tuple(map(sum, zip(*read, strict=True))) == (10, 5)


def test_errors_of_parts_and_the_loss_of_all_processes_are_raised(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="all of 2 processes were killed"):
        part_processes.write_parts(tasks(tmp_path, [Lines(tmp_path, n, kills=9) for n in (0, 1)]), 2, print)
    with pytest.raises(OSError, match="cannot be read"):
        part_processes.write_parts(
            tasks(tmp_path, [Lines(tmp_path, n, error="cannot be read") for n in (2, 3)]), 2, print
        )
