"""Trunk features, made in one pass by an actor pool of the whole cluster, before a run's workers start.

It is the same pass as `training.features.with_features`, which a run's workers do by themselves for a trunk that an
earlier stage of the run has trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from groundray.config import Settings
from groundray.runtime.data.derived_tasks import make_parts
from groundray.training import progression
from groundray.training.checkpoint import Store
from groundray.training.events import Event, FeaturesDone
from groundray.training.trunk_features import finish, make, passes, refusal, started_event


def make_features(settings: Settings, observe: Callable[[Event], None]) -> None:
    """Make what the run's stages want of the trunk that it starts with, where it is not there yet.

    Raises:
        ValueError: there is no room for it, or a row group is damaged.
    """
    store = Store.at(progression.folder_of(settings))
    stages = progression.check(settings)
    changing = next((place for place, stage in enumerate(stages) if stage.settings.trains_trunk), len(stages))
    asking = [stage for stage in stages[:changing] if not refusal(stage, settings) and not store.finished(stage.name)]
    if not asking:
        return
    trunk = progression.begin(settings)[0].visual.trunk
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
    started = time.monotonic()
    for _ in make_parts(missing, make, trunk, settings.scaling.use_gpu):
        pass
    for what, one in missing.items():
        finish(one)
        observe(FeaturesDone(what, one.dataset.rows, time.monotonic() - started))
