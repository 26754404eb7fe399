"""Makes trunk features with an actor pool on the whole cluster, before a run's workers start.

It is the same pass as `training.trunk_features.with_features`, which a run's workers do themselves for a trunk that an
earlier stage of the run has trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from groundray.data.derived import finalize, open_derived
from groundray.runtime.data.derived_tasks import make_on_cluster
from groundray.storage.folder import Folder
from groundray.training import progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import Event, FeaturesDone, Notice
from groundray.training.feature_uses import MARK_SECONDS, mark_used
from groundray.training.preflight import CheckedRun
from groundray.training.trunk_features import TrunkFeatures, features_of, prepare_cache, refusal, started_event


def make_features(run: CheckedRun, observe: Callable[[Event], None], user: Folder | None = None) -> None:
    """Make the missing features of the trunk that the run starts with, for the stages that read them. A stage whose
    features do not fit reads images; its workers say so.

    Args:
        user: folder of the run or sweep that uses them (default: the run's).

    Raises:
        ValueError: a stage that has read features finds no room to make them again, or a row group is damaged.
    """
    store, settings, stages = CheckpointStore.at(run.folder), run.settings, run.stages
    user = user or run.folder
    changing = next((index for index, stage in enumerate(stages) if stage.settings.trains_trunk), len(stages))
    reading = [stage for stage in stages[:changing] if not refusal(stage, settings) and not store.finished(stage.name)]
    if not reading:
        return
    trunk = progression.initial_model(settings)[0].visual.trunk
    # stages with the same data share their features: the first stage's name is shown
    by_folder: dict[str, tuple[str, TrunkFeatures]] = {}
    for stage in reading:
        wanted = features_of(stage, settings, trunk)
        specs = [features.spec for features in wanted.values()]
        if not prepare_cache(stage.name, specs, settings, run.folder, user, lambda text: observe(Notice(text))):
            for split, features in wanted.items():
                by_folder.setdefault(str(features.spec.folder), (f"{stage.name}.{split}", features))
    named = sorted(by_folder.values(), key=lambda item: item[0])
    specs = [features.spec for _, features in named]
    missing = {what: features for what, features in named if not open_derived(features.spec)}
    for what, features in missing.items():
        observe(started_event(what, features.spec))
    started = time.monotonic()
    work = {what: (features.spec, features.encoder) for what, features in missing.items()}
    marked = started

    def mark() -> None:
        nonlocal marked
        if time.monotonic() - marked > MARK_SECONDS:
            marked = time.monotonic()
            for spec in specs:
                mark_used(spec.folder, user)

    for _ in make_on_cluster(work, trunk, settings.scaling.use_gpu, settings.scaling.accelerator_type):
        mark()
    for what, features in missing.items():
        finalize(features.spec, mark)
        observe(FeaturesDone(what, features.spec.source.rows, time.monotonic() - started))
