"""Attempts at a run, and which of them may write.

Whenever a process, or a group of workers, begins or goes on with a run, that is an attempt. It takes a mark before it
looks at what is there: the next number, and a token in case that another takes the same number at the same time. Marks
are in order, and the last one holds the run. The names of all that an attempt writes end with its mark.

    RUN/attempts/0002-3f9a81c0.json         attempt 2 has begun
    RUN/attempts/0002-3f9a81c0-from.json    where it goes on, and what of older attempts counts
    RUN/attempts/0002-3f9a81c0-alive.json   its last sign of life, and why it ended where it could tell

So a worker of a host that was cut off and writes on harms nothing: what an older attempt writes after a newer one has
looked is on no list, and it deletes nothing that is, since it looks for a newer mark before it deletes. That takes a
storage that lists what has been written, and no more: neither locks nor files that only one can create.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groundray.storage.folder import Folder

FOLDER = "attempts"
MARK = r"(\d+)(?:-([0-9a-f]{8}))?"


class Mark(NamedTuple):
    """What an attempt's files are named by; a later attempt has a higher one."""

    number: int = 0
    token: str = ""

    def __str__(self) -> str:
        return f"{self.number:04d}-{self.token}" if self.token else f"{self.number:04d}"


class Superseded(RuntimeError):
    """Another attempt has taken over the run; this one must not write any more."""


NOBODY = Mark()


@dataclass(frozen=True)
class Attempt:
    """An attempt at the run in a folder, as those who read and write its files know it.

    Attributes:
        mark: its number is counted from 1; 0 where nobody has begun yet.
        accepted: names of what older attempts wrote that counts.
    """

    run: Folder
    mark: Mark = NOBODY
    accepted: frozenset[str] = field(default_factory=frozenset)

    @property
    def number(self) -> int:
        return self.mark.number

    def counts(self, name: str) -> bool:
        """Whether something in the run's folders is part of what this attempt builds on, or its own."""
        return name in self.accepted or mark_of(name) == self.mark

    def named(self, name: str) -> str:
        """A name for something that this attempt writes."""
        return f"{name}-a{self.mark}"

    def hold(self) -> None:
        """Raise Superseded where a newer attempt has begun."""
        newest = _newest(self.run)
        if newest > self.mark:
            raise Superseded(
                f"attempt {newest.number} at {self.run} has begun{_who(self.run, newest)}, which ends attempt "
                f"{self.number}: train a run from one place at a time, or give this one another --run.name"
            )

    def beat(self, stage: str, done: int, ended: str = "") -> None:
        """Leave a sign of life: so many steps of a stage are done; and why the attempt ends here, if it does."""
        state = {"stage": stage, "done": done, "time": time.time(), "ended": ended}
        with contextlib.suppress(OSError):  # what needs the storage will say so; this is only for the figures
            (self.run / FOLDER).write_json(f"{self.mark}-alive.json", state)

    def last_sign(self) -> dict[str, Any] | None:
        """What `beat` left last; None where it left nothing that can be read."""
        sign = _read(self.run, f"{self.mark}-alive.json")
        kinds = {"stage": str, "done": int, "time": float, "ended": str}
        return sign if sign and all(isinstance(sign.get(name), kind) for name, kind in kinds.items()) else None

    def write_begin(self, about: dict[str, Any]) -> None:
        """Note what the attempt begins with; from here on its own files count."""
        self.hold()
        (self.run / FOLDER).write_sealed(f"{self.mark}-from.json", {**about, "accepted": sorted(self.accepted)})


def claim(run: Folder, token: Callable[[], str] = lambda: uuid.uuid4().hex[:8]) -> Mark:
    """The mark of a new attempt, which ends all older ones."""
    folder = (run / FOLDER).make()
    while True:
        mark = Mark(_newest(run).number + 1, token())
        mine = {"host": socket.gethostname(), "process": os.getpid(), "began": time.time()}
        folder.write_json(f"{mark}.json", mine)
        if _newest(run) == mark:  # else another has begun meanwhile; the next number is higher than its mark
            return mark


def latest(run: Folder) -> Attempt:
    """The newest attempt that has noted what it began with."""
    found = begun(run)
    if not found:
        return Attempt(run)
    mark = max(found)
    return Attempt(run, mark, frozenset(found[mark]["accepted"]))


def begun(run: Folder) -> dict[Mark, dict[str, Any]]:
    """What each attempt began with, where that can be read."""
    found = {}
    for mark, name in _notes(run).items():
        with contextlib.suppress(ValueError):
            found[mark] = (run / FOLDER).read_sealed(name)
    return found


def damaged(run: Folder) -> dict[Mark, str]:
    """Which attempts' notes are damaged, with their paths."""
    notes = _notes(run)
    return {mark: f"{run / FOLDER}/{notes[mark]}" for mark in sorted(notes.keys() - begun(run).keys())}


def _notes(run: Folder) -> dict[Mark, str]:
    return _marked(run, rf"{MARK}-from\.json")


def mark_of(name: str) -> Mark:
    """The mark of the attempt that something is named for; of number -1 for none."""
    found = re.search(rf"-a{MARK}(\.\w+)?$", name)
    return Mark(int(found[1]), found[2] or "") if found else Mark(-1)


def _newest(run: Folder) -> Mark:
    return max(_marked(run, rf"{MARK}\.json"), default=NOBODY)


def _marked(run: Folder, pattern: str) -> dict[Mark, str]:
    """The names in the attempts' folder that fit a pattern, by their marks."""
    found = (re.fullmatch(pattern, name) for name in (run / FOLDER).names())
    return {Mark(int(one[1]), one[2] or ""): one[0] for one in found if one}


def _who(run: Folder, mark: Mark) -> str:
    there = _read(run, f"{mark}.json")
    return f" (process {there.get('process')} on {there.get('host')})" if there else ""


def _read(run: Folder, name: str) -> dict[str, Any] | None:
    """What a file of the attempts says; None where it is not there or was cut off."""
    folder = run / FOLDER
    try:
        found = folder.read_json(name) if folder.exists(name) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
