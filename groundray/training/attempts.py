"""Attempts at a run, and which of them may write to it.

A process, or a group of workers, that starts or resumes a run is an attempt. It first takes a fencing token: the next
number, and a random part in case another attempt takes the same number at the same time. Tokens are ordered, and the
attempt with the highest one owns the run. The names of everything that an attempt writes end with its token.

    RUN/attempts/0002-3f9a81c0.json         attempt 2 has started: where, with which settings, code and libraries
    RUN/attempts/0002-3f9a81c0-from.json    where it resumes, and which files of older attempts it accepts
    RUN/attempts/0002-3f9a81c0-alive.json   its last heartbeat, and why it ended if it could say so

A worker on a host that was cut off may write on without harm: no later attempt accepts what an older one writes after
the later one has begun, and an older attempt looks for a newer token before it deletes anything. The storage only has
to list what was written; it needs neither locks nor exclusive creation.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.training.layout import ATTEMPTS

UNSEALED_KEYS = "host|process|began|stage|done|time|ended"  # of files that earlier versions wrote without a seal
READS = 16  # concurrent reads of a store
TOKEN = r"(\d+)(?:-([0-9a-f]{8}))?"


class FencingToken(NamedTuple):
    """The identity of an attempt; later attempts have higher ones."""

    number: int = 0
    nonce: str = ""

    def __str__(self) -> str:
        return f"{self.number:04d}-{self.nonce}" if self.nonce else f"{self.number:04d}"


class Superseded(RuntimeError):
    """A newer attempt owns the run; this one must not write any more."""


NO_ATTEMPT = FencingToken()


@dataclass(frozen=True)
class Attempt:
    """An attempt at the run in a folder, seen by the code that reads and writes the run's files.

    Attributes:
        token: numbered from 1; NO_ATTEMPT if none has begun.
        accepted: names of files of older attempts that this one builds on.
    """

    run: Folder
    token: FencingToken = NO_ATTEMPT
    accepted: frozenset[str] = field(default_factory=frozenset)

    @property
    def number(self) -> int:
        return self.token.number

    def accepts(self, name: str) -> bool:
        """True if a file or folder is part of what this attempt builds on, or its own."""
        return name in self.accepted or token_of(name) == self.token

    def name(self, stem: str) -> str:
        """Returns the name under which this attempt writes something."""
        return f"{stem}-a{self.token}"

    def ensure_current(self) -> None:
        """Raise Superseded if a newer attempt has begun."""
        newest = _newest(self.run)
        if newest > self.token:
            raise Superseded(
                f"attempt {newest.number} at {self.run} has begun{_describe(self.run, newest)}, which ends attempt "
                f"{self.number}: train a run from one place at a time, or give this one another --run.name"
            )

    def heartbeat(self, stage: str, done: int, ended: str = "") -> None:
        """Write that the attempt is alive after `done` steps of a stage, and why it ends now if it does."""
        state = {"stage": stage, "done": done, "time": time.time(), "ended": ended}
        with contextlib.suppress(OSError):  # only for the figures; code that needs the storage raises its own error
            (self.run / ATTEMPTS).write_sealed(f"{self.token}-alive.json", state)

    def made_with(self) -> dict[str, Any]:
        """Returns what `claim` recorded; empty if nothing can be read."""
        return _read(self.run, f"{self.token}.json") or {}

    def last_heartbeat(self) -> dict[str, Any] | None:
        """Returns what `heartbeat` wrote last; None if nothing can be read."""
        state = _read(self.run, f"{self.token}-alive.json")
        kinds = {"stage": str, "done": int, "time": float, "ended": str}
        return state if state and all(isinstance(state.get(name), kind) for name, kind in kinds.items()) else None

    def damaged_figures(self) -> list[str]:
        """Returns a message about each damaged file that says who the attempt was, and how far it came."""
        messages = []
        for name in (f"{self.token}.json", f"{self.token}-alive.json"):
            try:
                (self.run / ATTEMPTS).read_sealed(name, UNSEALED_KEYS, "nothing to do, only figures are lost")
            except Damaged as error:
                messages.append(str(error))
            except FileNotFoundError:
                pass
        return messages

    def write_begin(self, note: dict[str, Any]) -> None:
        """Write what the attempt begins with; from here on, readers of the run see its files."""
        self.ensure_current()
        (self.run / ATTEMPTS).write_sealed(f"{self.token}-from.json", {**note, "accepted": sorted(self.accepted)})


def claim(
    run: Folder, made_with: Mapping[str, Any] | None = None, nonce: Callable[[], str] = lambda: uuid.uuid4().hex[:8]
) -> FencingToken:
    """Take the token of a new attempt, which supersedes all older ones.

    Args:
        made_with: recorded with the attempt, such as the versions of libraries.
    """
    folder = (run / ATTEMPTS).make()
    record = {"host": socket.gethostname(), "process": os.getpid(), "began": time.time(), **(made_with or {})}
    while True:
        token = FencingToken(_newest(run).number + 1, nonce())
        folder.write_sealed(f"{token}.json", record)
        if _newest(run) == token:  # else another attempt has just started: take a number above its own
            return token


def latest(run: Folder) -> Attempt:
    """Returns the newest attempt that has written what it began with."""
    notes = begun(run)
    if not notes:
        return Attempt(run)
    token = max(notes)
    return Attempt(run, token, frozenset(notes[token]["accepted"]))


def begun(run: Folder) -> dict[FencingToken, dict[str, Any]]:
    """Returns what each attempt began with, without the notes that are damaged."""
    names = _note_names(run)

    def read(name: str) -> dict[str, Any] | None:
        with contextlib.suppress(ValueError):
            return (run / ATTEMPTS).read_sealed(name)
        return None

    with ThreadPoolExecutor(READS) as pool:
        notes = zip(names, pool.map(read, names.values()), strict=True)
        return {token: note for token, note in notes if note is not None}


def damaged(run: Folder) -> dict[FencingToken, str]:
    """Returns the paths of damaged notes, by attempt."""
    names = _note_names(run)
    return {token: f"{run / ATTEMPTS}/{names[token]}" for token in sorted(names.keys() - begun(run).keys())}


def token_of(name: str) -> FencingToken:
    """Returns the token that a name ends with; one with the number -1 if there is none."""
    match = re.search(rf"-a{TOKEN}(\.\w+)?$", name)
    return FencingToken(int(match[1]), match[2] or "") if match else FencingToken(-1)


def _note_names(run: Folder) -> dict[FencingToken, str]:
    return _by_token(run, rf"{TOKEN}-from\.json")


def _newest(run: Folder) -> FencingToken:
    return max(_by_token(run, rf"{TOKEN}\.json"), default=NO_ATTEMPT)


def _by_token(run: Folder, pattern: str) -> dict[FencingToken, str]:
    """Returns the names in `attempts/` that match a pattern, by token."""
    matches = (re.fullmatch(pattern, name) for name in (run / ATTEMPTS).names())
    return {FencingToken(int(match[1]), match[2] or ""): match[0] for match in matches if match}


def _describe(run: Folder, token: FencingToken) -> str:
    owner = _read(run, f"{token}.json")
    return f" (process {owner.get('process')} on {owner.get('host')})" if owner else ""


def _read(run: Folder, name: str) -> dict[str, Any] | None:
    """Returns the content of a file in `attempts/`; None if it is missing or damaged."""
    with contextlib.suppress(Damaged, FileNotFoundError):
        return (run / ATTEMPTS).read_sealed(name, UNSEALED_KEYS)
    return None
