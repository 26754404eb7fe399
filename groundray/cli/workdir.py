"""The folder that a command's relative paths start from, in a Ray job too; and checks of its paths and URLs.

`ray job submit --working-dir .` runs a command in a copy of the uploaded folder. Ray makes another copy as soon as one
byte of the code differs, and deletes copies that no job uses, so nothing that should last belongs in one. Therefore the
code, and the file that `--config` names, come from the copy; data, runs and MLflow's database are in the home folder:
the one that `GROUNDRAY_HOME` names, or else the one in which `make setup` was run on the machine of the command.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

HOME = "GROUNDRAY_HOME"
COPIES = "working_dir_files"  # the folder of each node in which Ray unpacks what its jobs uploaded


def go_home(report: Callable[[str], None]) -> None:
    """Change to the home folder if the working directory is a Ray job's copy; else do nothing.

    Args:
        report: takes a line that names the new folder.

    Raises:
        SettingsError: there is no home folder.
    """
    if COPIES not in Path.cwd().parts:
        return
    given = os.environ.get(HOME)
    home = Path(given) if given else _setup_folder()
    if home is None or not home.is_absolute() or not home.is_dir():
        from groundray.config import SettingsError  # imports pydantic, which not every command needs

        raise SettingsError(
            f"a Ray job runs in a copy of the uploaded folder, which Ray deletes later: expected {HOME} to name a "
            f"folder of the head's machine for data and runs, such as /mnt/groundray, got {str(home or 'nothing')!r}. "
            "Set it where the head is started, or for one job: "
            f"""ray job submit --runtime-env-json '{{"env_vars": {{"{HOME}": "/FOLDER"}}}}' --working-dir . -- ..."""
        )
    os.chdir(home)
    report(f"job  relative paths start from {home}")


def _setup_folder() -> Path | None:
    """Return the folder that groundray is installed from in editable mode, as `make setup` does (PEP 610)."""
    for distribution in metadata.distributions(name="groundray"):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(url2pathname(urlparse(origin["url"]).path))
    return None


def open_paths(report: Callable[[str], None], paths: Iterable[str | None]) -> None:
    """Change to the home folder in a Ray job, and check that every store among the paths and URLs can be reached.

    Raises:
        OSError: a store does not answer, has no such bucket, or refuses the credentials.
        SettingsError: there is no home folder.
    """
    from groundray.storage.folder import Folder  # imports pyarrow, which not every command needs

    go_home(report)
    for path in paths:
        if path:
            Folder.connect(path)


def write_file(path: str, content: bytes) -> None:
    """Write a file at a path or URL, whole or not at all."""
    from groundray.storage.folder import Folder

    file = Folder.at(path)
    file.parent.make().write_bytes(file.name, content)


def write_json(path: str | None, content: Any) -> None:
    """Write JSON to a path or URL; do nothing if it is None."""
    if path:
        from groundray.storage.folder import Folder

        file = Folder.at(path)
        file.parent.make().write_json(file.name, content)
