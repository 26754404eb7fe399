"""The specification of a sweep: the settings that its trials share, those that differ, and the metric.

STORAGE/NAME/sweep.json       the specification; a name belongs to one sweep
STORAGE/NAME/before/          the run with the stages that all trials share, if any
STORAGE/NAME/trials/          one run for each trial
STORAGE/NAME/tune/            Ray Tune's state, from which the sweep resumes
STORAGE/NAME/table.csv, trials.json, sweep.png      the results
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from groundray.config import Run, Settings, SettingsError, StageName, changed, did_you_mean, differences
from groundray.runtime.tune.search_space import Space, format_value
from groundray.stage.protocol import Best, Direction, check_reported, direction_of
from groundray.storage.folder import Folder
from groundray.training import identity, layout, preflight
from groundray.training.identity import Identity
from groundray.training.layout import features_folder

Search = Literal["grid", "random", "tpe"]
DEFINITION, SHARED, TRIALS, STATE = "sweep.json", "before", "trials", "tune"
TABLE, RESULTS, PLOT = "table.csv", "trials.json", "sweep.png"
SEED = "run.seed"
# keys of sweep.json besides those that identify the sweep
ID, ADOPTED, FOLDER, START_ALIAS = "id", "adopted", "folder", "start_alias"
# keys of sweep.json in an earlier version, which neither sealed it nor gave it an id
FORMER_KEYS = (
    rf"(run|data|scaling|model|features|{'|'.join(get_args(StageName))})\..*|stages|space|metric|search|samples|seeds|"
    "early stopping|trials at once"
)


class Metric(NamedTuple):
    """The validation metric of a stage that trials are compared by, such as `grounding/text_to_image/recall@10`."""

    stage: str
    name: str
    mode: Direction

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}"

    @staticmethod
    def parse(text: str, mode: Direction | None, settings: Settings) -> Metric:
        """Parse STAGE/METRIC, or a stage alone, for the metric of its setting `best`.

        Without `mode`, losses, perplexities and ranks are minimized, other metrics maximized.
        """
        stage, slash, name = text.partition("/")
        if not slash:
            section = settings.stage(stage) if stage in settings.stages else None
            if not section or not section.best:
                raise SettingsError(
                    f"--metric: expected STAGE/METRIC such as grounding/loss, or a stage whose setting `best` names "
                    f"its metric, got {text!r}"
                )
            best = Best.parse(section.best)
            return Metric(stage, best.metric, mode or best.mode)
        return Metric(stage, name, mode or direction_of(name) or "max")


@dataclass(frozen=True)
class Sweep:
    """A sweep: runs that differ in a few settings.

    Attributes:
        settings: shared by all trials; `run.storage` and `run.name` give the sweep's folder.
        num_samples: number of points to draw; unused by a grid.
        seeds: number of trials at each point, which differ in `run.seed`.
        early_stopping: stop weak trials early with ASHA (Li et al. 2020).
        max_concurrent: number of concurrent trials; None for as many as fit on the cluster at the start.
    """

    settings: Settings
    spaces: tuple[Space, ...]
    metric: Metric
    search: Search
    num_samples: int
    seeds: int
    early_stopping: bool
    max_concurrent: int | None = None

    @property
    def folder(self) -> Folder:
        return layout.folder_of(self.settings)

    @property
    def shared_stages(self) -> tuple[str, ...]:
        """The stages that are trained once for all trials: those before the first that a swept setting affects."""
        names = self.settings.stages
        places = [self._first_changed(space) for space in self.spaces]
        return names[: min([*places, names.index(self.metric.stage)])]

    def _first_changed(self, space: Space) -> int:
        names, section = self.settings.stages, space.name.partition(".")[0]
        if section in names:
            return names.index(section)
        return 0  # such as `model.` and `data.`, on which every stage depends

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a trial."""
        names = self.settings.stages
        return names[len(self.shared_stages) : names.index(self.metric.stage) + 1]

    @property
    def epochs(self) -> int:
        """Number of epochs of the metric's stage."""
        return self.settings.stage(self.metric.stage).epochs

    @property
    def cpus(self) -> int:
        """CPUs of a trial that trains, reads and decodes in its own process, or of each worker."""
        return max(1, math.ceil(self.settings.scaling.cpus_per_worker))

    def shared_settings(self) -> Settings | None:
        """Return the settings of the run that trains the shared stages, or None if there are none.

        It runs alone on the cluster: if trials have one worker, it uses as many as fit.
        """
        if not self.shared_stages:
            return None
        own: dict[str, Any] = {"run.storage": str(self.folder), "run.name": SHARED, "analysis.enabled": False}
        if self.settings.scaling.max_workers == 1:
            own["scaling.num_workers"] = (1, self.settings.chunks)
        return changed(self.settings, {"stages": self.shared_stages, **own})

    def settings_of(self, values: Mapping[str, Any], name: str) -> Settings:
        """Return the settings of a trial.

        Args:
            values: swept settings and the seed, by dotted name.
        """
        own: dict[str, Any] = {
            "stages": self.stages,
            "run.storage": str(self.folder / TRIALS),
            "run.name": name,
            "features.folder": str(features_folder(self.settings)),
            # float32 sums depend on the number of threads: fixed, so that a trial can be repeated
            "scaling.threads": self.settings.scaling.threads or self.cpus,
        }
        if self.shared_stages:
            own |= {"run.start_from": str(self.folder / SHARED / layout.MODEL), "run.start_stage": None}
            own |= {"run.start_alias": None, "run.start_files": None}
        return changed(self.settings, own | dict(values))

    def check(self) -> None:
        """Check data, stages, metric and search spaces before anything starts.

        Raises:
            SettingsError, FileNotFoundError, ValueError: the sweep cannot run; the message gives the repair.
        """
        if self.metric.stage not in self.settings.stages:
            raise SettingsError(
                f"--metric {self.metric}: expected a metric of a stage that is trained "
                f"({', '.join(self.settings.stages)}), got one of {self.metric.stage!r}"
                + did_you_mean(self.metric.stage, self.settings.stages)
            )
        last = self.settings.stages.index(self.metric.stage)
        for space in self.spaces:
            section = space.name.partition(".")[0]
            if section in get_args(StageName) and section not in self.settings.stages[: last + 1]:
                raise SettingsError(
                    f"--space {space}: {self.metric} is measured without stage {section}; expected a setting of "
                    f"{', '.join(self.settings.stages[: last + 1])}, or of what all stages share"
                )
            if self.search == "grid" and space.kind != "choice":
                raise SettingsError(f"--search grid: expected choice:... of each setting, got {space}")
        if self.search == "tpe" and self.seeds > 1:
            raise SettingsError("--seeds: TPE learns from each trial on its own; use --search grid or random")
        preflight.check_storage(self.settings)
        stages = {stage.name: stage for stage in preflight.check(self.settings).stages}
        check_reported("--metric", self.metric.name, stages[self.metric.stage])

    def claim(self, resume: bool) -> Identity:
        """Claim the sweep's folder, or check that it belongs to this sweep. Returns its identity, as a run has one.

        A copy of a sweep whose original can still be reached gets an id of its own.

        Raises:
            SettingsError: the folder belongs to another sweep or run, or to this one and `resume` is False.
            Damaged: the folder's sweep.json is damaged.
        """
        folder, here = self.folder, self.definition()
        if not folder.exists(DEFINITION):
            if folder.exists(layout.RUN) or folder.exists(layout.CONFIG):
                raise SettingsError(f"{folder} holds a training run: use another --run.name")
            new = identity.mint()
            content = {ID: new, ADOPTED: False, FOLDER: str(folder), START_ALIAS: self.settings.run.start_alias, **here}
            if folder.make().create_sealed(DEFINITION, content):
                return Identity(new, self.settings, {}, str(folder))
        stored = _stored(folder)
        stored_id, adopted, former = stored.pop(ID, None), stored.pop(ADOPTED, True), stored.pop(FOLDER, None)
        alias = stored.pop(START_ALIAS, None)
        if different := differences(stored, here):
            raise SettingsError(
                f"{folder} holds another sweep:\n" + "\n".join(different) + "\nuse another --run.name, or its settings"
            )
        if not resume:
            raise SettingsError(f"{folder} holds this sweep already: give --resume to resume it, or another --run.name")
        # an earlier version wrote no id, or no folder
        known = Identity(stored_id or identity.mint(), self.settings, {}, former or str(folder), adopted)
        known = identity.settled(folder, known, _stored_id)
        if (known.id, known.folder) != (stored_id, former):
            moved = {ID: known.id, ADOPTED: known.adopted, FOLDER: known.folder, START_ALIAS: alias}
            folder.write_sealed(DEFINITION, {**moved, **here})
        return known

    def stored_id(self) -> str | None:
        """Return the sweep's id, None if it has not started."""
        return _stored_id(self.folder)

    def stored_start(self) -> Run | None:
        """Return the model from which the sweep's runs start, as the sweep began; None if it has not started."""
        if not self.folder.exists(DEFINITION):
            return None
        stored = _stored(self.folder)
        return Run(start_from=stored.get("run.start_from"), start_alias=stored.get(START_ALIAS))

    def ensure_state_is_trusted(self, resume: bool, trust_storage: bool) -> None:
        """Raise SettingsError if resuming would unpickle Ray Tune's state from storage that others may write to.

        Unpickling runs the code that a pickle names. A local state is trusted if its files belong to the user of this
        process and others may not write to them; the groups of a user may. A state in an object store is trusted only
        with `trust_storage`: the rights of a bucket cannot be seen from here.
        """
        state = self.folder / STATE
        if not resume or trust_storage or not state.exists():
            return
        reason = "it is in an object store"
        if state.local:
            files = [Path(state.path), *Path(state.path).rglob("*")]
            foreign = [file for file in files if not _is_own(file)]
            if not foreign:
                return
            reason = f"{foreign[0]} belongs to another user, or everyone may write to it"
        without = (
            "use another --run.name, since TPE cannot draw its points again"
            if self.search == "tpe"
            else f"delete {state}: trials are drawn again, and each resumes from its own files, which hold no pickles"
        )
        raise SettingsError(
            f"expected Ray Tune's state that only you can write, since it is unpickled, which runs code; got {state}, "
            f"and {reason}: give --trust-storage if you trust all who may write there, or {without}"
        )

    def definition(self) -> dict[str, Any]:
        """Return everything that identifies the sweep."""
        settings = {key: value for key, value in self.settings.identity().items() if value is not None}
        return settings | {
            "space": [str(space) for space in self.spaces],
            "metric": f"{self.metric} ({self.metric.mode})",
            "search": self.search,
            "samples": self.num_samples,
            "seeds": self.seeds,
            "early stopping": self.early_stopping,
            "trials at once": self.max_concurrent or "as many as fit",  # Tune keeps the number of the start
        }


def _stored(folder: Folder) -> dict[str, Any]:
    """Return the content of a sweep's definition."""
    repair = "restore it from a copy, or use another --run.name"
    return folder.read_sealed(DEFINITION, unsealed_keys=FORMER_KEYS, repair=repair)


def _stored_id(folder: Folder) -> str | None:
    return _stored(folder).get(ID) if folder.exists(DEFINITION) else None


def _is_own(file: Path) -> bool:
    """Return True if a file belongs to the user of this process and others may not write to it."""
    status = file.lstat()
    return status.st_uid == os.geteuid() and (stat.S_ISLNK(status.st_mode) or not status.st_mode & stat.S_IWOTH)


def describe_values(values: Mapping[str, Any]) -> str:
    """Format a trial's values, with the last part of each name."""
    return ", ".join(f"{name.rpartition('.')[2]} {format_value(value)}" for name, value in values.items())
