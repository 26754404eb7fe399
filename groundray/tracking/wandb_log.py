"""One run in Weights & Biases for each training run, found again by the run's id.

Online, the run's summary on the server has the steps that it holds, as MLflow's tag has: a run that resumes adds the
others. Offline, nothing tells what is logged, and wandb cannot resume: each start of a driver writes the whole history
to a folder of its own, and deletes the former one. W&B's own step only counts calls: curves are drawn over the steps of
their stage, in any order.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from groundray.config import Settings, flatten
from groundray.storage.folder import Folder
from groundray.tracking.description import configuration_of, origin_of
from groundray.tracking.logged_steps import ATTEMPTED, RECOVERED, LoggedSteps, series_of
from groundray.tracking.protocol import WANDB, Status, note_end
from groundray.training.events import Event
from groundray.training.identity import Identity
from groundray.training.step_ranges import StepRanges

FOLDER = "wandb"  # in a run's folder; wandb adds it to the folder that it is given
LOGGED = "groundray_logged"  # of the summary: steps of each series, as ranges
START_SECONDS, FINISH_SECONDS = 30.0, 50.0  # for the server's answer, and for what is left to be sent


class WandbLog:
    """A W&B run that is open for writing."""

    def __init__(
        self,
        settings: Settings,
        folder: Folder,
        run: Identity,
        parent: str | None,
        progress: Callable[[float], None] = lambda _: None,
    ):
        """Find the W&B run of a training run by its id, or create it with the run's configuration, in the group of its
        sweep."""
        self._place, self._identity, self._progress = folder / FOLDER, run, progress
        self._offline = settings.tracking.wandb.mode == "offline"
        with contextlib.ExitStack() as held:
            self._local = Path(folder.path if folder.local else held.enter_context(tempfile.TemporaryDirectory()))
            held.callback(_end_service)
            progress(START_SECONDS)
            self._run = _start(settings, self._local, folder, run, parent)
            held.callback(_finish, self._run)
            progress(0.0)
            self._logged = LoggedSteps(settings, _logged_steps(self._run, settings), progress)
            for stage in settings.stages:
                self._run.define_metric(f"{stage}/step", hidden=True)
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._run.define_metric("recovery/attempt", hidden=True)
            self._run.define_metric("recovery/*", step_metric="recovery/attempt")
            self._held = held.pop_all()

    def catch_up(self, folder: Folder, warn: Callable[[str], None]) -> None:
        """Log what the files of a run have and the W&B run lacks."""
        self.metrics(self._logged.missed(folder, warn))
        if self._place.local:
            self._delete_former()

    def metrics(self, events: Iterable[Event]) -> None:
        """Log each event once, with the names of `logged_steps.Entry`."""
        told = False
        for entry in self._logged.missing(events):
            is_recovery = entry.series in (ATTEMPTED, RECOVERED)
            axis = "recovery/attempt" if is_recovery else f"{entry.series.partition('/')[0]}/step"
            self._run.log({axis: entry.step, "_timestamp": entry.time, **entry.metrics})
            self._logged.steps[entry.series].add(entry.step)
            told = True
        if told:
            steps = {series: steps.as_json() for series, steps in self._logged.steps.items()}
            self._run.summary[LOGGED] = json.dumps(steps, separators=(",", ":"))

    def end(self, result: dict[str, Any] | None, status: Status, folder: Folder) -> None:
        """Log the status and the result as the run's summary, and end it."""
        summary = {f"result.{name}": value for name, value in flatten(result or {})}
        self._run.summary.update({**summary, "status": status})
        self._progress(FINISH_SECONDS)
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
        self._progress(0.0)
        for link in self._own.rglob("*"):  # to a log of wandb's own in the cache: whoever copies the folder lacks it
            if link.is_symlink():
                link.unlink()
        if self._offline and not self._place.local:
            own = self._own.name
            (self._place / own).make().upload(self._own)
            self._delete_former()
        note_end(folder, WANDB, self._identity, status)

    def release(self) -> None:
        """End the run, if `end` has not, and wandb's process, if it is used for no other run."""
        self._held.close()

    @property
    def _own(self) -> Path:
        """The folder that wandb writes to."""
        return Path(self._run.dir).parent

    def _delete_former(self) -> None:
        """Delete the folders of earlier starts, of which this one's has everything."""
        if self._offline:
            for name in self._place.names():
                if name.startswith("offline-run-") and self._identity.id in name and name != self._own.name:
                    self._place.delete(name)


def _start(settings: Settings, local: Path, folder: Folder, run: Identity, parent: str | None) -> Any:
    """Return a W&B run that is started, or online resumed."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else wandb reports its crashes to its makers
    with tempfile.TemporaryDirectory() as cache, _environment("WANDB_CACHE_DIR", cache):
        import wandb  # takes seconds, so only a run that W&B tracks imports it, off the main thread

        own = settings.tracking.wandb
        options = wandb.Settings(
            mode=own.mode,
            root_dir=str(local),
            silent=True,
            console="off",
            symlink=False,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            stop_fn=lambda: None,  # a click on W&B's page ends no training
        )
        return wandb.init(
            project=own.project or settings.tracking.experiment,
            entity=own.entity,
            id=run.id,
            name=settings.run.name,
            group=parent,
            job_type="train",
            config=configuration_of(settings, run) | origin_of(folder),
            resume="allow" if own.mode == "online" else None,  # offline, wandb cannot
            reinit="create_new",  # a notebook's own run goes on
            settings=options,
        )


def _finish(run: Any) -> None:
    """End a run as failed, if it has not ended."""
    import wandb

    try:
        run.finish(exit_code=1)
    except Exception:  # noqa: BLE001  wandb's process has died, and wandb counts the run as active
        wandb.setup().remove_active_run(run)


def _end_service() -> None:
    """End wandb's process, unless another run of this process uses it."""
    with contextlib.suppress(Exception, SystemExit):
        import wandb

        if wandb.setup().most_recent_active_run is None:
            wandb.teardown()


def _logged_steps(run: Any, settings: Settings) -> dict[str, StepRanges]:
    """Return the steps that a W&B run has of each series, as its summary tells."""
    try:
        known = json.loads(run.summary[LOGGED]) if run.resumed else {}
    except (KeyError, ValueError, TypeError):
        known = {}
    return {series: StepRanges.parse(known.get(series, ())) for series in series_of(settings)}


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment inside the context, unless it is set."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
