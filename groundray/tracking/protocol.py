"""What a tracker does for a training run, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from groundray.config import Settings
from groundray.storage.folder import Folder
from groundray.training.events import Event
from groundray.training.identity import Identity

Status = Literal["FINISHED", "FAILED", "KILLED"]
MAX_EVENTS = 999  # of one call of `metrics`


class RunLog(Protocol):
    """A training run in a tracker, open for writing. `catch_up` is called first, and again where events were missed."""

    def catch_up(self, folder: Folder, warn: Callable[[str], None]) -> None:
        """Log what the files of the run have and the tracker lacks.

        Args:
            folder: the run's.
            warn: takes a line for each damaged file.
        """
        ...

    def metrics(self, events: Iterable[Event]) -> None:
        """Log the metrics of each event that is not logged; `logged_steps.Entry` has their names."""
        ...

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Log the content of result.json, if there is one, and how the run ended."""
        ...

    def release(self) -> None:
        """Release files and processes, also after an error. Nothing is logged afterwards."""
        ...


class OpenLog(Protocol):
    def __call__(
        self,
        settings: Settings,
        folder: Folder,
        run: Identity,
        parent: str | None,
        progress: Callable[[float], None] = ...,
    ) -> RunLog:
        """Find the run in a tracker by its id, or create it with its configuration.

        Args:
            folder: the run's.
            parent: id of the sweep that the run is part of.
            progress: is called where there is progress, with the extra seconds that the next may take.
        """
        ...


def openers(settings: Settings) -> dict[str, OpenLog]:
    """Return what opens a run in each tracker, by the tracker's title."""
    from groundray.tracking.mlflow_log import MlflowLog

    return {"MLflow": MlflowLog.open}
