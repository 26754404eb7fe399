"""Trunk features, made in one pass by an actor pool of the whole cluster, before a run's workers start.

It is the same pass as `training.features.with_features`, which a run's workers do by themselves for a trunk that an
earlier stage of the run has trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray.config import Settings
from groundray.model.trunk import Trunk
from groundray.runtime.stream import quiet_context
from groundray.training import run
from groundray.training.checkpoint import Store
from groundray.training.events import Event, FeaturesDone
from groundray.training.features import Pass, finish, make, passes, refusal, started_event
from groundray.training.memory import ENVIRONMENT, keep_freed_memory


class Maker:
    """Makes parts of features: an actor with a trunk of its own, on a GPU where it has one."""

    def __init__(self, wanted: dict[str, Pass], trunk: Any, threads: int):
        keep_freed_memory()
        self._wanted, self._threads = wanted, threads
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        found: Any = ray.get(trunk)
        self._trunk: Trunk = found.to(self._device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        one, group, names = self._wanted[row["what"]], int(row["group"]), list(row["names"])
        try:
            return {"images": make(one, group, names, self._trunk, self._device, self._threads), "error": ""}
        except (OSError, ValueError) as error:  # Ray Data would tell of it in forty lines
            return {"images": 0, "error": str(error)}


def make_features(settings: Settings, observe: Callable[[Event], None]) -> None:
    """Make what the run's stages want of the trunk that it starts with, where it is not there yet.

    Raises:
        ValueError: there is no room for it, or a row group is damaged.
    """
    store = Store.at(run.folder_of(settings))
    stages = run.check(settings)
    changing = next((place for place, stage in enumerate(stages) if stage.settings.trains_trunk), len(stages))
    asking = [stage for stage in stages[:changing] if not refusal(stage, settings) and not store.finished(stage.name)]
    if not asking:
        return
    trunk = run.begin(settings)[0].visual.trunk
    # stages with the same data have the same pass
    wanted = {
        str(one.folder): (f"{stage.name}.{part}", one)
        for stage in reversed(asking)
        for part, one in passes(stage, settings, trunk).items()
    }
    missing = {what: one for what, one in sorted(wanted.values()) if not one.made()}
    for what, one in missing.items():
        one.check_room()
        observe(started_event(what, one))
    if missing:
        _make(missing, trunk, settings.scaling.use_gpu, observe)


def _make(wanted: dict[str, Pass], trunk: Trunk, use_gpu: bool, observe: Callable[[Event], None]) -> None:
    started = time.monotonic()
    has = ray.cluster_resources()
    cpus, gpus = int(has.get("CPU", 1)), int(has.get("GPU", 0)) if use_gpu else 0
    tasks = [
        {"what": what, "group": group, "names": names}
        for what, one in wanted.items()
        for group, names in one.work(gpus or cpus)
    ]
    if tasks:
        actors = min(len(tasks), gpus or cpus)
        ray.get(_pass.remote(tasks, wanted, ray.put(trunk), actors, max(1, cpus // actors), gpus > 0))
    for what, one in wanted.items():
        finish(one)
        observe(FeaturesDone(what, one.dataset.rows, time.monotonic() - started))


@ray.remote(num_cpus=0, max_retries=0)
def _pass(
    tasks: list[dict[str, Any]], wanted: dict[str, Pass], trunk: Any, actors: int, threads: int, gpu: bool
) -> None:
    """The pass itself, on the cluster: a driver would show what Ray's core and Ray Data tell of it as they go."""
    with ray.data.DataContext.current(quiet_context()):
        done = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map(
            cast(Any, Maker),
            fn_constructor_args=(wanted, ray.put(trunk), threads),
            compute=ActorPoolStrategy(size=actors),
            num_cpus=threads if gpu else 1,
            num_gpus=1 if gpu else None,
            runtime_env={"env_vars": ENVIRONMENT},
        )
        for row in done.iter_rows():
            if row["error"]:
                raise ValueError(row["error"])
