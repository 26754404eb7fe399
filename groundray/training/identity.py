"""The identity of a run: an id that is minted when its folder is claimed, and kept there in `run.json`.

A path identifies no run. A folder is deleted and its name used again, it is moved, it is copied, or it exists on two
machines. Therefore MLflow finds a run by its id. `run.json` also has the settings and the fingerprints of the data that
the name belongs to. It is written whole and once: of several processes that start a name at the same time, one writes
it, and the others compare their settings with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from groundray.config import Settings, SettingsError, differences, parse_yaml
from groundray.credentials import has_secret
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.training.layout import CONFIG, FORMER_DATA, RUN


@dataclass(frozen=True)
class Identity:
    """The identity of a run.

    Attributes:
        id: 32 hexadecimal digits, unique in the world.
        settings: those of the run's first start.
        fingerprints: of its data sets, by name such as `grounding.train`.
        folder: the path or URL at which the run was minted, or was found after it was moved.
        adopted: True if an earlier version started the run, without an id.
        created: when the id was minted, in seconds since 1970.
    """

    id: str
    settings: Settings
    fingerprints: dict[str, str]
    folder: str
    adopted: bool = False
    created: float = field(default_factory=time.time, compare=False)

    def content(self) -> dict[str, Any]:
        """Return the content of `run.json`."""
        return {
            "id": self.id,
            "created": self.created,
            "folder": self.folder,
            "adopted": self.adopted,
            "settings": self.settings.model_dump(mode="json"),
            "data": self.fingerprints,
        }


def read(folder: Folder) -> Identity | None:
    """Return the identity of the run in a folder; None if it has none.

    Raises:
        ValueError: `run.json` is damaged or of another version; the message has the repair.
    """
    if not folder.exists(RUN):
        return None
    repair = (
        f"restore it from a copy, or delete it and rerun the same command, which resumes the run under a new id (in "
        f"MLflow as a new run) with the settings of {CONFIG}"
    )
    content = folder.read_sealed(RUN, repair=repair)
    try:
        settings = Settings.stored(content["settings"])
        return Identity(
            content["id"], settings, content["data"], content["folder"], content["adopted"], content["created"]
        )
    except (ValueError, KeyError) as error:
        raise SettingsError(f"{folder}/{RUN} is of another version of groundray: {_one_line(error)}") from None


def check(folder: Folder, settings: Settings, fingerprints: Mapping[str, str]) -> None:
    """Check that a name is free or holds a run of these settings and data, as `claim` does; writes nothing.

    Raises:
        SettingsError: it holds a run of other settings or other data; the message prints the difference.
    """
    if known := read(folder) or _former(folder):
        _ensure_equal(folder, known, settings, fingerprints)


def recorded(folder: Folder) -> Settings | None:
    """Return the settings of the run in a folder; None if it has none.

    Raises:
        ValueError: they are damaged or of another version; the message has the repair.
    """
    known = read(folder) or _former(folder)
    return known.settings if known else None


def claim(folder: Folder, settings: Settings, fingerprints: Mapping[str, str]) -> Identity:
    """Return the identity of the run in a folder; mint one if there is none.

    A run of an earlier version is adopted: it gets an id, and keeps its settings. A copy of a run whose original can
    still be reached gets an id of its own.

    Raises:
        OSError: the storage cannot be written.
        SettingsError: the name holds a run of other settings or other data; the message prints the difference.
    """
    known = read(folder)
    if known is None:
        new = _former(folder) or Identity(mint(), settings, dict(fingerprints), str(folder))
        folder.make().create_sealed(RUN, new.content())  # or another process has just done so
        known = read(folder)
        assert known is not None
    _ensure_equal(folder, known, settings, fingerprints)
    if (here := settled(folder, known, _stored_id)) != known:
        known = here
        folder.write_sealed(RUN, known.content())
    try:
        whole = not has_secret(folder.read_sealed_text(CONFIG))  # an earlier version may have written one
    except (FileNotFoundError, Damaged):
        whole = False
    if not whole:
        folder.write_sealed_text(CONFIG, known.settings.to_yaml())
    return known


def _ensure_equal(folder: Folder, known: Identity, settings: Settings, fingerprints: Mapping[str, str]) -> None:
    if different := differences(
        _compared(known.settings, known.fingerprints or fingerprints), _compared(settings, fingerprints)
    ):
        raise SettingsError(
            f"{folder} holds a run of another configuration:\n"
            + "\n".join(different)
            + "\nuse these settings to resume it, or another --run.name"
        )


def settled(folder: Folder, known: Identity, stored_id: Callable[[Folder], str | None]) -> Identity:
    """Return an identity that was read in a folder: with an id of its own if the folder is a copy of one that can still
    be reached, with its new path if it was moved.

    Args:
        stored_id: returns the id in a folder.
    """
    if _is_at(folder, known.folder):
        return known
    with contextlib.suppress(OSError, ValueError):  # what cannot be read is not there any more
        former = Folder.at(known.folder)
        if former.local == folder.local and stored_id(former) == known.id:
            return Identity(mint(), known.settings, known.fingerprints, str(folder))
    return replace(known, folder=str(folder))  # without its new path, a copy of it would be taken for moved too


def _stored_id(folder: Folder) -> str | None:
    run = read(folder)
    return run.id if run else None


def settings_hash(settings: Settings, fingerprints: Mapping[str, str]) -> str:
    """Return the SHA-256 of everything that a run's results depend on: 64 hexadecimal digits."""
    compared = json.dumps(_compared(settings, fingerprints), sort_keys=True, default=str)
    return hashlib.sha256(compared.encode()).hexdigest()


def mint() -> str:
    """Return a new id."""
    return uuid.uuid4().hex


def _compared(settings: Settings, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """Return what may not change when a run resumes, by name."""
    return settings.identity() | {f"{part} (the shards' fingerprint)": value for part, value in fingerprints.items()}


def _former(folder: Folder) -> Identity | None:
    """Return a new identity of a run that an earlier version started; None if it started none.

    Raises:
        SettingsError: the run's settings are damaged; the message has the repair.
    """
    if not folder.exists(CONFIG):
        return None
    repair = "restore it from a copy, or use another --run.name"
    tree = parse_yaml(folder.read_sealed_text(CONFIG, repair), f"{folder}/{CONFIG}")
    try:
        if not isinstance(tree, dict):
            raise ValueError(f"expected sections, got {type(tree).__name__}")
        data = folder.read_json(FORMER_DATA) if folder.exists(FORMER_DATA) else {}
        return Identity(mint(), Settings.stored(tree), data, str(folder), adopted=True)
    except ValueError as error:
        raise SettingsError(f"{folder}/{CONFIG} or {FORMER_DATA} is damaged: {_one_line(error)}: {repair}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_at(folder: Folder, url: str) -> bool:
    """Return True if a path or URL is that of a folder, or another path of the same folder."""
    if url == str(folder):
        return True
    with contextlib.suppress(OSError):
        return folder.local and Path(url).samefile(folder.path)
    return False
