"""Where a command's relative paths are, in a Ray job too.

`ray job submit --working-dir .` runs a command in a copy of what was uploaded. Ray makes another copy as soon as one
byte of the code differs, and deletes those that no job uses: nothing that should last belongs there. So the code, and
the file that `--config` names, come from the copy; data, runs and MLflow's file are in the home folder: the one that
`GROUNDRAY_HOME` names, or else the one in which `make setup` was run on the machine that runs the command.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from groundray.config import SettingsError

HOME = "GROUNDRAY_HOME"
COPIES = "working_dir_files"  # where Ray unpacks, on each node, what its jobs have brought


def go_home(tell: Callable[[str], None]) -> None:
    """Where the working directory is a Ray job's copy, leave it for the home folder; elsewhere, stay.

    Args:
        tell: takes a line for a person, about where relative paths are from now on.

    Raises:
        SettingsError: there is no such folder.
    """
    if COPIES not in Path.cwd().parts:
        return
    given = os.environ.get(HOME)
    home = Path(given) if given else _set_up_in()
    if home is None or not home.is_absolute() or not home.is_dir():
        raise SettingsError(
            f"a Ray job runs in a copy of what was uploaded, which is no place for data and runs: expected {HOME} to "
            f"name a folder of the head's machine, such as /mnt/groundray, got {str(home or 'nothing')!r}. Set it "
            "where the head is started, or for one job: "
            f"""ray job submit --runtime-env-json '{{"env_vars": {{"{HOME}": "/FOLDER"}}}}' --working-dir . -- ..."""
        )
    os.chdir(home)
    tell(f"job  relative paths are those of {home}")


def _set_up_in() -> Path | None:
    """The folder that this Python has groundray from by an editable install, as `make setup` makes it (PEP 610)."""
    for found in metadata.distributions(name="groundray"):
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(url2pathname(urlparse(origin["url"]).path))
    return None
