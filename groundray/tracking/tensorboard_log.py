"""One TensorBoard run for each training run: an event file that holds every step once, in order.

TensorBoard keeps a curve in the order of the file, and takes a step that is not after the last one for a restart: the
later points of the curve vanish. So what was missed cannot be added at the end. A driver that starts or resumes writes
the run's history to a new file and goes on there, and so does one that finds that the file lacks a step. The new file
replaces the old one when it has all of the history; until then, it has a name that TensorBoard does not read. No note
of what is logged is needed, and no moment at which a process is killed leaves a step twice or none.

Files in an object store are written here, and copied there from time to time.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from groundray.config import Settings, flatten
from groundray.storage.folder import Folder
from groundray.tracking.description import configuration_of, origin_of
from groundray.tracking.event_file import EventFile
from groundray.tracking.logged_steps import Entry, LoggedSteps
from groundray.tracking.protocol import TENSORBOARD, Status, note_end
from groundray.training.events import Event
from groundray.training.identity import Identity

FOLDER = "tensorboard"  # in a run's folder
COPY_SECONDS = 60.0  # least time between copies to a store
COPY_SHARE = 20  # a copy that takes long is made after so many times as long


class TensorBoardLog:
    """The event file of a run, open for writing."""

    def __init__(
        self,
        settings: Settings,
        run: Identity,
        place: Folder,
        origin: dict[str, str],
        progress: Callable[[float], None],
    ):
        """Write to a folder, in which the files of other runs are left alone."""
        self._settings, self._run, self._place, self._origin, self._progress = settings, run, place, origin, progress
        self._next_copy = time.monotonic() + COPY_SECONDS
        with contextlib.ExitStack() as held:
            self._local = Path(place.path if place.local else held.enter_context(tempfile.TemporaryDirectory()))
            self._begin()
            self._held = held.pop_all()

    @staticmethod
    def open(
        settings: Settings,
        folder: Folder,
        run: Identity,
        parent: str | None,
        progress: Callable[[float], None] = lambda _: None,
    ) -> TensorBoardLog:
        """Begin an event file in `tensorboard/` of a run's folder, or in a folder of the run below
        `tracking.tensorboard.folder`: NAME-ID, or SWEEP/NAME-ID for a trial, with eight digits of each id."""
        place = folder / FOLDER
        if settings.tracking.tensorboard.folder:
            place = Folder.at(settings.tracking.tensorboard.folder)
            place = (place / parent[:8] if parent else place) / f"{settings.run.name}-{run.id[:8]}"
        return TensorBoardLog(settings, run, place.make(), origin_of(folder), progress)

    def catch_up(self, folder: Folder, warn: Callable[[str], None]) -> None:
        """Log what the files of a run have and the event file lacks: at its end, or in a new one."""
        for entry in self._logged.missing(self._logged.missed(folder, warn)):
            if entry.step < self._logged.steps[entry.series].last:
                self._file.close()
                self._begin()
                self.metrics(self._logged.missed(folder, warn))
                break
            self._write(entry)
        if not self._name:
            self._replace()
        self._flush()

    def metrics(self, events: Iterable[Event]) -> None:
        """Log each event once, with the names of `logged_steps.Entry`."""
        for entry in self._logged.missing(events):
            self._write(entry)
        self._flush()

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Log the status, and the content of result.json as text."""
        if result is not None:
            self._file.table("result", dict(flatten(result)))
        self._file.end(status)
        self._flush(at_end=True)
        note_end(folder, TENSORBOARD, self._run, status)

    def release(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._held.close()

    def _begin(self) -> None:
        """Begin a file that is not read yet, without any step."""
        self._logged = LoggedSteps(self._settings, progress=self._progress)
        self._name = ""  # until it replaces the former
        self._path = self._local / f".{self._run.id}.partial"
        self._file = EventFile(self._path)
        known = configuration_of(self._settings, self._run)
        self._file.hyperparameters(known, self._run.created)
        self._file.table("config", known | self._origin)

    def _replace(self) -> None:
        """Give the file its name, after those of former files, and delete these. Before it are also those of the run
        that this one's folder was copied from: readers drop their steps."""
        named = re.compile(r"events\.out\.tfevents\.(\d+)\.(\w+)")
        found = {name: match for name in self._place.names() if (match := named.fullmatch(name))}
        former = [name for name, match in found.items() if match[2] == self._run.id]
        number = max((int(match[1]) for match in found.values()), default=0) + 1
        self._name = f"events.out.tfevents.{number:06d}.{self._run.id}"
        self._path.rename(self._local / self._name)
        self._flush(at_end=not self._place.local)
        for name in former:
            (self._local / name).unlink(missing_ok=True)
            if not self._place.local:
                self._place.delete(name)

    def _write(self, entry: Entry) -> None:
        self._file.scalars(entry.metrics, entry.step, entry.time)
        self._logged.steps[entry.series].add(entry.step)

    def _flush(self, at_end: bool = False) -> None:
        """Let readers see what is logged, those of a store from time to time."""
        self._file.flush()
        if not self._place.local and self._name and (at_end or time.monotonic() >= self._next_copy):
            self._copy()

    def _copy(self) -> None:
        """Copy the file to the store, whole."""
        began = time.monotonic()
        self._progress(COPY_SECONDS)
        Folder.at(self._local).copy([self._name], self._place)
        self._progress(0.0)
        now = time.monotonic()
        self._next_copy = now + max(COPY_SECONDS, COPY_SHARE * (now - began))
