"""The folder of a run, and the names of what lies in it.

STORAGE/NAME/run.json         the run's id, settings and fingerprints of data; a name belongs to one run: identity.py
STORAGE/NAME/config.yaml      the resolved settings, to read and to use with --config
STORAGE/NAME/attempts/        the attempts at the run: attempts.py
STORAGE/NAME/checkpoints/     checkpoint.py
STORAGE/NAME/history/         every step and validation: history.py
STORAGE/NAME/inputs/          whether each stage reads what is cached of its frozen parts: feature_choice.py
STORAGE/NAME/not_finite/      the samples of steps whose loss or gradient was not finite: non_finite.py
STORAGE/NAME/stacks/          the stack traces of workers that hung: watchdog.py
STORAGE/NAME/profile/         traces of some steps (`run.profile`): profiling.py
STORAGE/NAME/ray/             Ray Train's own state: runtime/train/
STORAGE/NAME/model/           the exported model: model/export.py
STORAGE/NAME/result.json      the final metrics of each stage
STORAGE/NAME/tensorboard/, wandb/, and their .json   what trackers hold, and how the run ended there: tracking/

STORAGE/.features/            the trunk features of all runs: trunk_features.py
STORAGE/.data/scenes/         the demo's data, drawn by a run on a cluster: cli/embedded_world.py
STORAGE/.models/              models that runs start from, downloaded from MLflow: cli/start_model.py
"""

from __future__ import annotations

from typing import Any

from groundray.config import Settings
from groundray.config.embedded_world import SHARED_WORLD
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged

RUN, CONFIG, RESULT, MODEL = "run.json", "config.yaml", "result.json", "model"
FORMER_DATA = "data.json"  # the fingerprints, in folders of earlier versions
ATTEMPTS, CHECKPOINTS, HISTORY, INPUTS = "attempts", "checkpoints", "history", "inputs"
NOT_FINITE, STACKS, PROFILE, FEATURES = "not_finite", "stacks", "profile", ".features"
START_MODELS, DRAWN_DATA = ".models", SHARED_WORLD


def folder_of(settings: Settings) -> Folder:
    """Returns the folder of a run."""
    return Folder.at(settings.run.storage) / settings.run.name


def features_folder(settings: Settings) -> Folder:
    """Returns the folder of trunk features: beside the runs and shared by them, unless `features.folder` is set."""
    if settings.features.folder:
        return Folder.at(settings.features.folder)
    return Folder.at(settings.run.storage) / FEATURES


def read_result(folder: Folder) -> dict[str, Any] | None:
    """Return the result of a finished run, `result.json`; None if the run is not finished.

    Raises:
        Damaged: the file is damaged; rerunning the run's command writes it again.
    """
    try:
        return folder.read_sealed(RESULT, "run|stages", "rerun the run's command, which writes it again")
    except FileNotFoundError:
        return None


def is_complete(folder: Folder) -> bool:
    """Return True if the run in a folder has trained to its end, and its result can be read."""
    try:
        return read_result(folder) is not None
    except Damaged:
        return False
