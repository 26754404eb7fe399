"""Marks of what searches answer from: `python -m groundray.clean` keeps what was written lately.

FOLDER/used.json    when a search last said that it uses the folder: an index, position features, a cached model
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Sequence

from groundray.storage.folder import Folder

USED = "used.json"
MARK_SECONDS = 600.0  # between two marks


def keep_marked(folders: Sequence[Folder], user: object) -> None:
    """Mark some folders now, and then every ten minutes in a thread, which ends with the object that uses them."""
    ended = threading.Event()
    weakref.finalize(user, ended.set).atexit = False

    def go_on() -> None:
        while not ended.wait(MARK_SECONDS):
            mark(folders)

    mark(folders)
    threading.Thread(target=go_on, name="groundray-uses", daemon=True).start()


def mark(folders: Sequence[Folder]) -> None:
    """Mark some folders now."""
    for folder in folders:
        with contextlib.suppress(OSError):  # one that this process may only read; answers do not depend on it
            folder.write_json(USED, {"time": time.time()})
