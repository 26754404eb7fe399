"""The specification of a sweep: the settings that its trials share, those that differ, and the metric.

STORAGE/NAME/sweep.json       the specification; a name belongs to one sweep
STORAGE/NAME/before/          the run with the stages that all trials share, if any
STORAGE/NAME/trials/          one run for each trial
STORAGE/NAME/tune/            Ray Tune's state, from which the sweep resumes
STORAGE/NAME/population.json  the members of each generation, with population-based training: population.py
STORAGE/NAME/table.csv, trials.json                 the results
STORAGE/NAME/sweep.png, parallel.png, front.png     pictures of them; the front is that of several metrics
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from groundray.config import Run, Settings, SettingsError, StageName, changed, did_you_mean, differences, flatten
from groundray.runtime.tune.search_space import Space, format_value
from groundray.stage.protocol import Best, Direction, check_reported, direction_of
from groundray.storage.folder import Folder
from groundray.training import identity, layout, preflight
from groundray.training.identity import Identity
from groundray.training.layout import features_folder

Search = Literal["grid", "random", "tpe", "pbt"]
DEFINITION, SHARED, TRIALS, STATE = "sweep.json", "before", "trials", "tune"
TABLE, RESULTS, PLOT = "table.csv", "trials.json", "sweep.png"
PARALLEL, FRONT = "parallel.png", "front.png"
SEED = "run.seed"
# keys of sweep.json besides those that identify the sweep
ID, ADOPTED, FOLDER, START_ALIAS = "id", "adopted", "folder", "start_alias"
CONCURRENT = "trials at once"
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
        """Parse STAGE/METRIC, or a stage alone, for the metric of its setting `best`; `:min` or `:max` may follow.

        Without a `mode`, losses, perplexities and ranks are minimized, other metrics maximized.

        Raises:
            SettingsError: the text has another form, or names another mode than `mode`.
        """
        whole = text
        text, _, suffix = text.partition(":")
        if suffix or whole.endswith(":"):
            if suffix not in get_args(Direction):
                raise SettingsError(f"--metric {whole}: expected min or max after the colon, got {suffix!r}")
            if mode not in (None, suffix):
                raise SettingsError(f"--metric {whole}: --order says {mode}: give one of the two")
            mode = cast(Direction, suffix)
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
        others: further metrics; none of all counts more than another.
        perturb_every: epochs of a generation of population-based training.
    """

    settings: Settings
    spaces: tuple[Space, ...]
    metric: Metric
    search: Search
    num_samples: int
    seeds: int
    early_stopping: bool
    max_concurrent: int | None = None
    others: tuple[Metric, ...] = ()
    perturb_every: int = 1

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All metrics that trials are compared by."""
        return (self.metric, *self.others)

    @property
    def last_stage(self) -> str:
        """The last stage that trials train: the last that a metric is measured in."""
        return max((metric.stage for metric in self.metrics), key=self.settings.stages.index)

    @property
    def folder(self) -> Folder:
        return layout.folder_of(self.settings)

    @property
    def shared_stages(self) -> tuple[str, ...]:
        """The stages that are trained once for all trials: those before the first that a swept setting affects."""
        names = self.settings.stages
        places = [self._first_changed(space) for space in self.spaces]
        return names[: min([*places, *(names.index(metric.stage) for metric in self.metrics)])]

    def _first_changed(self, space: Space) -> int:
        names, section = self.settings.stages, space.name.partition(".")[0]
        if section in names:
            return names.index(section)
        return 0  # such as `model.` and `data.`, on which every stage depends

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a trial."""
        names = self.settings.stages
        return names[len(self.shared_stages) : names.index(self.last_stage) + 1]

    @property
    def epochs(self) -> int:
        """Number of epochs of the last stage."""
        return self.settings.stage(self.last_stage).epochs

    @property
    def generation_ends(self) -> tuple[int, ...]:
        """The epochs at which the generations of population-based training end."""
        return (*range(self.perturb_every, self.epochs, self.perturb_every), self.epochs)

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

    def settings_of(self, values: Mapping[str, Any], name: str, continue_from: str | None = None) -> Settings:
        """Return the settings of a trial.

        Args:
            values: swept settings and the seed, by dotted name.
            continue_from: as `run.continue_from`.
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
            own["run.continue_from"] = None  # the first shared stage continues it
        if continue_from:
            own["run.continue_from"] = continue_from
        if self.search == "pbt":  # others may continue from the end of each generation
            within = self.settings.stage(self.metric.stage).validate_every_steps
            own["checkpoints.keep_every"] = 1 if within else self.perturb_every
        return changed(self.settings, own | dict(values))

    def check(self) -> None:
        """Check data, stages, metrics and search spaces before anything starts.

        Raises:
            SettingsError, FileNotFoundError, ValueError: the sweep cannot run; the message gives the repair.
        """
        self.check_options()
        preflight.check_storage(self.settings)
        stages = {stage.name: stage for stage in preflight.check(self.settings).stages}
        for metric in self.metrics:
            check_reported("--metric", metric.name, stages[metric.stage])

    def check_options(self) -> None:
        """Check what needs no data: metrics, search spaces and how they are searched.

        Raises:
            SettingsError: the sweep cannot run; the message gives the repair.
        """
        names = self.settings.stages
        for metric in self.metrics:
            if metric.stage not in names:
                raise SettingsError(
                    f"--metric {metric}: expected a metric of a stage that is trained "
                    f"({', '.join(names)}), got one of {metric.stage!r}" + did_you_mean(metric.stage, names)
                )
        self._check_metrics()
        before = names[: names.index(self.last_stage) + 1]
        for space in self.spaces:
            section = space.name.partition(".")[0]
            if section in get_args(StageName) and section not in before:
                raise SettingsError(
                    f"--space {space}: {', '.join(map(str, self.metrics))} is measured without stage {section}; "
                    f"expected a setting of {', '.join(before)}, or of what all stages share"
                )
            if self.search == "grid" and space.kind != "choice":
                raise SettingsError(f"--search grid: expected choice:... of each setting, got {space}")
        self._check_metrics_differ()
        if self.search == "tpe" and self.seeds > 1:
            raise SettingsError("--seeds: TPE learns from each trial on its own; use --search grid or random")
        if self.search == "pbt":
            self._check_population()

    def _check_population(self) -> None:
        """Raise SettingsError if members cannot take up each other's training."""
        stage = self.metric.stage
        section = self.settings.stage(stage)

        def refuse(expected: str) -> None:
            raise SettingsError(f"--search pbt: {expected}")

        if self.others:
            refuse(f"expected one --metric, got {len(self.metrics)}: members are ranked by one; use --search tpe")
        if self.early_stopping:
            refuse("expected --early-stopping none, got asha: the weakest members are replaced, and none is stopped")
        if self.seeds > 1:
            refuse(f"expected --seeds 1, got {self.seeds}: give a larger population with --num-samples")
        if self.num_samples < 2:
            refuse(f"expected --num-samples of at least 2, the members of the population, got {self.num_samples}")
        if self.perturb_every >= section.epochs:
            refuse(
                f"expected --perturb-every below the {section.epochs} of {stage}.epochs, got {self.perturb_every}: "
                "train for more epochs, or give fewer for a generation"
            )
        if self.settings.run.continue_from and not self.shared_stages:
            refuse(
                f"expected run.continue_from null, got {self.settings.run.continue_from}: generations are counted from "
                f"the start of {stage}; leave it out, or start from that run's model (run.start_from)"
            )
        if section.patience is not None:
            refuse(f"expected {stage}.patience null, got {section.patience}: all members train equally long")
        fixed = (f"{stage}.trains.", f"{stage}.optimizer.layer_decay", f"{stage}.optimizer.trunk_layer_decay")
        for space in self.spaces:
            flat = [dict(flatten(changed(self.settings, {space.name: x}).model_dump())) for x in space.values]
            decimal = all(isinstance(settings[space.name], float) for settings in flat)
            if not space.name.startswith(f"{stage}.") or space.name.startswith(fixed) or not decimal:
                refuse(
                    f"expected rates, temperatures, weights or dropouts of {stage} as --space, got {space}: a member "
                    "takes up another's weights and moments with other values, so these may change neither the model "
                    "nor its batches; use --search tpe"
                )
            if space.name == f"{stage}.temperature" and getattr(section, "learns_temperature", False):
                refuse(
                    f"expected {stage}.learn_temperature false with --space {space}, got a learned temperature: a "
                    "member that takes up another's training takes its temperature too; set it false, or use --search "
                    "tpe"
                )
            if space.name == f"{stage}.optimizer.weight_decay" and 0 in space.values and any(space.values):
                refuse(
                    f"expected --space {space.name} above 0, got {space}: without weight decay the optimizer numbers "
                    "its parameters otherwise, and another's moments would belong to other parameters; start above 0, "
                    "such as at 1e-6, or use --search tpe"
                )

    def _check_metrics_differ(self) -> None:
        """Raise SettingsError if a metric is measured before the first stage that a swept setting changes."""
        names = self.settings.stages
        first = min((self._first_changed(space) for space in self.spaces), default=0)
        for metric in self.metrics:
            if names.index(metric.stage) < first:
                raise SettingsError(
                    f"--metric {metric}: expected a metric of {', '.join(names[first:])}, got one of {metric.stage}, "
                    f"which no --space changes: it is the same in all trials. Leave it out, or sweep a setting of "
                    f"{metric.stage}"
                )

    def _check_metrics(self) -> None:
        """Raise SettingsError if a metric is given twice, or a scheduler is asked to compare trials by several."""
        names = [str(metric) for metric in self.metrics]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SettingsError(f"--metric {twice}: expected each metric once")
        if self.others and self.early_stopping:
            raise SettingsError(
                f"--early-stopping asha: expected one --metric, got {len(names)} ({', '.join(names)}): ASHA stops "
                "trials by one; give --early-stopping none"
            )

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
        if self.search == "pbt":
            stored.pop(CONCURRENT, None)  # an earlier version wrote it for populations too
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
        if not resume or trust_storage or not state.exists() or self.search == "pbt":  # whose state is not read
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
            "metric": ", ".join(f"{metric} ({metric.mode})" for metric in self.metrics),
            "search": self.search,
            "samples": self.num_samples,
            "seeds": self.seeds,
            "early stopping": self.early_stopping,
            **(
                {"epochs of a generation": self.perturb_every}  # resumes from its own file, on any number at once
                if self.search == "pbt"
                else {CONCURRENT: self.max_concurrent or "as many as fit"}  # Tune keeps the number of the start
            ),
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
