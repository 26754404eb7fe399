"""Attempts at a run, and which of them may write.

Whenever a process, or a group of workers, begins or goes on with a run, that is an attempt. It takes the next number
before it looks at what is there, and the names of all that it writes end with that number (`-a0002`).

    RUN/attempts/0002.json         attempt 2 has begun
    RUN/attempts/0002-from.json    where it goes on, and what of older attempts counts
    RUN/attempts/0002-alive.json   its last sign of life, and why it ended where it could tell

So a worker of a host that was cut off and writes on harms nothing: what an older attempt writes after a newer one has
looked is on no list, and it deletes nothing that is, since it looks for a newer number before it deletes.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from groundray.storage import Folder

FOLDER = "attempts"


class Superseded(RuntimeError):
    """Another attempt has taken over the run; this one must not write any more."""


@dataclass(frozen=True)
class Attempt:
    """An attempt at the run in a folder, as those who read and write its files know it.

    Attributes:
        number: counted from 1; 0 where nobody has begun yet.
        accepted: names of what older attempts wrote that counts.
        token: what it wrote when it took its number, which on an object store two may think to have taken.
    """

    run: Folder
    number: int = 0
    accepted: frozenset[str] = field(default_factory=frozenset)
    token: str = ""

    def counts(self, name: str) -> bool:
        """Whether something in the run's folders is part of what this attempt builds on, or its own."""
        return name in self.accepted or number_of(name) == self.number

    def named(self, name: str) -> str:
        """A name for something that this attempt writes."""
        return f"{name}-a{self.number:04d}"

    def hold(self) -> None:
        """Raise Superseded where a newer attempt has begun."""
        newest = _newest(self.run)
        taken = (_read(self.run, f"{self.number:04d}.json") or {}).get("token", self.token) if self.token else ""
        if newest > self.number or taken != self.token:
            raise Superseded(
                f"attempt {newest} at {self.run} has begun{_who(self.run, newest)}, which ends attempt {self.number}: "
                "train a run from one place at a time, or give this one another --run.name"
            )

    def beat(self, stage: str, done: int, ended: str = "") -> None:
        """Leave a sign of life: so many steps of a stage are done; and why the attempt ends here, if it does."""
        state = {"stage": stage, "done": done, "time": time.time(), "ended": ended}
        with contextlib.suppress(OSError):  # what needs the storage will say so; this is only for the figures
            (self.run / FOLDER).write_json(f"{self.number:04d}-alive.json", state)

    def last_sign(self) -> dict[str, Any] | None:
        """What `beat` left last; None where it left nothing that can be read."""
        sign = _read(self.run, f"{self.number:04d}-alive.json")
        kinds = {"stage": str, "done": int, "time": float, "ended": str}
        return sign if sign and all(isinstance(sign.get(name), kind) for name, kind in kinds.items()) else None

    def write_begin(self, about: dict[str, Any]) -> None:
        """Note what the attempt begins with; from here on its own files count."""
        self.hold()
        (self.run / FOLDER).write_sealed(f"{self.number:04d}-from.json", {**about, "accepted": sorted(self.accepted)})


def claim(run: Folder) -> tuple[int, str]:
    """The number of a new attempt, which ends all older ones, and its token."""
    folder = (run / FOLDER).make()
    while True:
        number = _newest(run) + 1
        mine = {"host": socket.gethostname(), "process": os.getpid(), "began": time.time(), "token": uuid.uuid4().hex}
        if folder.create_json(f"{number:04d}.json", mine):
            return number, mine["token"]


def latest(run: Folder) -> Attempt:
    """The newest attempt that has noted what it began with."""
    found = begun(run)
    if not found:
        return Attempt(run)
    number = max(found)
    return Attempt(run, number, frozenset(found[number]["accepted"]))


def begun(run: Folder) -> dict[int, dict[str, Any]]:
    """What each attempt began with, by number, where that can be read."""
    found = {}
    for name in _notes(run):
        with contextlib.suppress(ValueError):
            found[int(name.split("-")[0])] = (run / FOLDER).read_sealed(name)
    return found


def damaged(run: Folder) -> dict[int, str]:
    """Which attempts' notes are damaged, with their paths."""
    numbers = {int(name.split("-")[0]): f"{run / FOLDER}/{name}" for name in _notes(run)}
    return {number: numbers[number] for number in sorted(numbers.keys() - begun(run).keys())}


def _notes(run: Folder) -> list[str]:
    return [name for name in (run / FOLDER).names() if re.fullmatch(r"\d+-from\.json", name)]


def number_of(name: str) -> int:
    """The attempt that something is named for; -1 for none."""
    found = re.search(r"-a(\d+)(\.\w+)?$", name)
    return int(found[1]) if found else -1


def _newest(run: Folder) -> int:
    numbers = [int(name[:-5]) for name in (run / FOLDER).names() if re.fullmatch(r"\d+\.json", name)]
    return max(numbers, default=0)


def _who(run: Folder, number: int) -> str:
    there = _read(run, f"{number:04d}.json")
    return f" (process {there.get('process')} on {there.get('host')})" if there else ""


def _read(run: Folder, name: str) -> dict[str, Any] | None:
    """What a file of the attempts says; None where it is not there or was cut off."""
    folder = run / FOLDER
    try:
        found = folder.read_json(name) if folder.exists(name) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
