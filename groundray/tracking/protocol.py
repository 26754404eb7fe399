"""What a tracker does for a training run, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from groundray.config import Settings, TrackerName
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.training.events import Event
from groundray.training.identity import Identity

Status = Literal["FINISHED", "FAILED", "KILLED"]
MAX_EVENTS = 999  # of one call of `metrics`
MLFLOW, TENSORBOARD, WANDB = "MLflow", "TensorBoard", "W&B"  # titles, for messages


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
    """Return what opens a run in each of its trackers, by the tracker's title. Each imports its library when it is
    called."""
    from groundray.tracking.mlflow_log import MlflowLog
    from groundray.tracking.tensorboard_log import TensorBoardLog
    from groundray.tracking.wandb_log import WandbLog

    known: dict[TrackerName, tuple[str, OpenLog]] = {
        "mlflow": (MLFLOW, MlflowLog.open),
        "tensorboard": (TENSORBOARD, TensorBoardLog.open),
        "wandb": (WANDB, WandbLog),
    }
    return dict(known[name] for name in settings.tracking.to)


def note_end(folder: Folder, title: str, run: Identity, status: Status) -> None:
    """Note in a run's folder how it ended in a tracker that cannot be asked for it."""
    folder.write_sealed(_note(title), {"id": run.id, "status": status})


def read_end(folder: Folder, title: str, run: Identity) -> str | None:
    """Return how a run ended in a tracker, by its note; None if there is none."""
    try:
        note = folder.read_sealed(_note(title))
    except (FileNotFoundError, Damaged):
        return None
    return note["status"] if note.get("id") == run.id else None


def _note(title: str) -> str:
    return f"{title.replace('&', 'and').lower()}.json"
