"""The description of a run that all trackers get: its configuration and where it comes from."""

from __future__ import annotations

from typing import Any

from groundray.config import Settings, flatten
from groundray.storage.folder import Folder
from groundray.training.identity import Identity
from groundray.versions import code_version, library_versions, version_of

FOLDER_TAG = "groundray.run"  # for people; earlier versions found a run by it


def configuration_of(settings: Settings, run: Identity) -> dict[str, Any]:
    """Return the settings of a run and the fingerprints of its data, by dotted name. Values are as in JSON, not
    nested."""
    flat = {**dict(flatten(settings.model_dump(mode="json"))), "scaling.chunks": settings.chunks}
    return flat | {f"data.{name}.fingerprint": value for name, value in run.fingerprints.items()}


def origin_of(folder: Folder) -> dict[str, str]:
    """Return where a run comes from: its folder, the commit of the code and the versions of libraries."""
    versions = {"mlflow-skinny": version_of("mlflow-skinny"), "groundray": version_of("groundray")} | library_versions()
    tags = {FOLDER_TAG: str(folder), "git.commit": code_version()}
    return tags | {f"version.{name}": version for name, version in versions.items()}
