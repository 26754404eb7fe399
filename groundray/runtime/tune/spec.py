"""What a sweep is: the settings that its trials share, what differs between them, and how they are compared.

STORAGE/NAME/sweep.json       what it is; a name belongs to one sweep
STORAGE/NAME/before/          the run that its trials start from, where there is something to train first
STORAGE/NAME/trials/          one run a trial
STORAGE/NAME/tune/            Ray Tune's own state, from which it is resumed
STORAGE/NAME/table.csv, trials.json, sweep.png      what came out
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from groundray.config import Settings, SettingsError, StageName, changed, did_you_mean, differences
from groundray.runtime.tune.search_space import Space, format_value
from groundray.storage.folder import Folder
from groundray.training import layout, preflight
from groundray.training.layout import features_folder

Search = Literal["grid", "random", "tpe"]
DEFINITION, SHARED, TRIALS, STATE = "sweep.json", "before", "trials", "tune"
TABLE, RESULTS, PLOT = "table.csv", "trials.json", "sweep.png"
SEED = "run.seed"


class Metric(NamedTuple):
    """What trials are compared by: a validation metric of a stage, `grounding/text_to_image/recall@10`."""

    stage: str
    name: str
    mode: Literal["min", "max"]

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}"

    @staticmethod
    def parse(text: str, mode: Literal["min", "max"] | None) -> Metric:
        """Of these, less of a loss, a perplexity or a rank is better, unless `mode` says otherwise."""
        stage, slash, name = text.partition("/")
        if not slash:
            raise SettingsError(f"--metric: expected STAGE/METRIC such as grounding/loss, got {text!r}")
        less = name.endswith(("loss", "perplexity", "_rank"))
        return Metric(stage, name, mode or ("min" if less else "max"))


@dataclass(frozen=True)
class Sweep:
    """Many runs that differ in a few settings.

    Attributes:
        settings: what all trials share; `run.storage` and `run.name` say where the sweep is kept.
        num_samples: points that are drawn; a grid has its own number.
        seeds: trials at each point, that differ in `run.seed`.
        early_stopping: whether ASHA (Li et al. 2020) ends trials that fall behind.
        max_concurrent: trials at once; None for as many as fit on the cluster that the sweep begins on.
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
        """The stages that are trained once, for all trials: those before the first that a trial could change."""
        names = self.settings.stages
        places = [self._first_changed(space) for space in self.spaces]
        return names[: min([*places, names.index(self.metric.stage)])]

    def _first_changed(self, space: Space) -> int:
        names, section = self.settings.stages, space.name.partition(".")[0]
        if section in names:
            return names.index(section)
        return 0  # as `model.` and `data.`: every stage depends on it

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of a trial."""
        names = self.settings.stages
        return names[len(self.shared_stages) : names.index(self.metric.stage) + 1]

    @property
    def epochs(self) -> int:
        """Of the metric's stage."""
        return self.settings.stage(self.metric.stage).epochs

    @property
    def cpus(self) -> int:
        """Of a trial that trains in a process of its own, which reads and decodes there too, or of each worker."""
        return max(1, math.ceil(self.settings.scaling.cpus_per_worker))

    def shared_settings(self) -> Settings | None:
        """The run that trials start from; None where there is nothing to train first.

        Nothing else runs meanwhile: where a trial has one worker, it has as many as there is room for.
        """
        if not self.shared_stages:
            return None
        own: dict[str, Any] = {"run.storage": str(self.folder), "run.name": SHARED, "analysis.enabled": False}
        if self.settings.scaling.max_workers == 1:
            own["scaling.num_workers"] = (1, self.settings.chunks)
        return changed(self.settings, {"stages": self.shared_stages, **own})

    def settings_of(self, values: Mapping[str, Any], name: str) -> Settings:
        """The settings of a trial.

        Args:
            values: swept settings and the seed, by dotted name.
        """
        own: dict[str, Any] = {
            "stages": self.stages,
            "run.storage": str(self.folder / TRIALS),
            "run.name": name,
            "features.folder": str(features_folder(self.settings)),
            # float32 rounds by the number of threads: as many for whoever trains a trial again
            "scaling.threads": self.settings.scaling.threads or self.cpus,
        }
        if self.shared_stages:
            own |= {"run.start_from": str(self.folder / SHARED / layout.MODEL), "run.start_stage": None}
        return changed(self.settings, own | dict(values))

    def check(self) -> None:
        """Raise what makes the sweep impossible, before anything starts: data, stages, a metric that nobody reports.

        Raises:
            SettingsError, FileNotFoundError, ValueError: with what was expected, and the repair.
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
        reported = stages[self.metric.stage].metric_names
        if self.metric.name not in reported:
            raise SettingsError(
                f"--metric {self.metric}: stage {self.metric.stage} reports {', '.join(reported)}"
                + did_you_mean(self.metric.name, reported)
            )

    def claim(self, resume: bool) -> None:
        """Take the sweep's name, or find that it is this sweep's.

        Raises:
            SettingsError: the name is in use, and not by this sweep, or without `resume`.
        """
        folder, here = self.folder, self.definition()
        if not folder.exists(DEFINITION):
            if folder.exists(layout.CONFIG):
                raise SettingsError(f"{folder} holds a training run: use another --run.name")
            folder.make().write_json(DEFINITION, here)
            return
        if different := differences(folder.read_json(DEFINITION), here):
            raise SettingsError(
                f"{folder} holds another sweep:\n" + "\n".join(different) + "\nuse another --run.name, or its settings"
            )
        if not resume:
            raise SettingsError(f"{folder} holds this sweep already: --resume goes on with it, another --run.name anew")

    def definition(self) -> dict[str, Any]:
        """All that makes it this sweep and no other."""
        settings = {key: value for key, value in self.settings.identity().items() if value is not None}
        return settings | {
            "space": [str(space) for space in self.spaces],
            "metric": f"{self.metric} ({self.metric.mode})",
            "search": self.search,
            "samples": self.num_samples,
            "seeds": self.seeds,
            "early stopping": self.early_stopping,
            "trials at once": self.max_concurrent or "as many as fit",  # Tune keeps to what it began with
        }


def describe_values(values: Mapping[str, Any]) -> str:
    """A trial's values for a person: the last part of each name."""
    return ", ".join(f"{name.rpartition('.')[2]} {format_value(value)}" for name, value in values.items())
