"""The folder of a run, and the names of what lies in it.

STORAGE/NAME/config.yaml      the resolved settings; a name belongs to one configuration
STORAGE/NAME/data.json        the fingerprints of its data
STORAGE/NAME/attempts/        the attempts at the run: attempts.py
STORAGE/NAME/checkpoints/     checkpoint.py
STORAGE/NAME/history/         every step and validation: history.py
STORAGE/NAME/not_finite/      the samples of steps whose loss or gradient was not finite: non_finite.py
STORAGE/NAME/stacks/          the stack traces of workers that hung: watchdog.py
STORAGE/NAME/ray/             Ray Train's own state: runtime/train/
STORAGE/NAME/model/           the exported model: model/export.py
STORAGE/NAME/result.json      the final metrics of each stage

STORAGE/.features/            the trunk features of all runs: trunk_features.py
"""

from __future__ import annotations

from groundray.config import Settings
from groundray.storage.folder import Folder

CONFIG, DATA, RESULT, MODEL = "config.yaml", "data.json", "result.json", "model"
ATTEMPTS, CHECKPOINTS, HISTORY = "attempts", "checkpoints", "history"
NOT_FINITE, STACKS, FEATURES = "not_finite", "stacks", ".features"


def folder_of(settings: Settings) -> Folder:
    """Returns the folder of a run."""
    return Folder.at(settings.run.storage) / settings.run.name


def features_folder(settings: Settings) -> Folder:
    """Returns the folder of trunk features: beside the runs and shared by them, unless `features.folder` is set."""
    if settings.features.folder:
        return Folder.at(settings.features.folder)
    return Folder.at(settings.run.storage) / FEATURES
