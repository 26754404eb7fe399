"""A check before a run: whether its trackers are installed, and its MLflow experiment or MLflow run was deleted."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import netrc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from groundray.config import Settings
from groundray.credentials import WANDB_KEY
from groundray.tracking.store import Deleted, client_of, experiment_of, find_run, store_exists, uri_of
from groundray.training import identity, layout

CHECK_SECONDS = 15.0  # for the answer of a server before a run starts


def _run_id(settings: Settings) -> str | None:
    """Return the id of the run of these settings, None if it has not started."""
    run = identity.read(layout.folder_of(settings))
    return run.id if run else None


class Inquiry:
    """Asks, while other checks of a run are made, why it cannot be tracked: its MLflow experiment or MLflow run was
    deleted, a tracker is not installed, or W&B has no key."""

    def __init__(self, settings: Settings, get_id: Callable[[Settings], str | None] = _run_id):
        """Ask in a thread; do nothing if the run is not tracked.

        Args:
            get_id: returns the id of the run, or of a sweep; None if it has not started.
        """
        self._settings, self._get_id = settings, get_id
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._ask, name="groundray-tracking-check", daemon=True)
        if settings.tracking.uses("mlflow") and store_exists(uri_of(settings)):
            self._thread.start()

    def problem(self) -> str | None:
        """Return what is missing or was deleted, with the repair. None if nothing is, or if MLflow does not answer: a
        run that starts reports a server that cannot be reached, and what it misses is logged later."""
        if lacking := missing_extra(self._settings) or missing_key(self._settings):
            return lacking
        if self._thread.ident:
            self._thread.join(CHECK_SECONDS)
        return self._problem

    def _ask(self) -> None:
        try:
            client = client_of(self._settings)
            experiment = experiment_of(client, self._settings, create=False)
            if experiment and (run_id := self._get_id(self._settings)):
                find_run(client, self._settings, experiment, run_id)
        except Deleted as error:
            self._problem = str(error)
        except Exception:  # reported when the run starts
            logging.getLogger(__name__).debug("no answer from the tracking server", exc_info=True)


def missing_extra(settings: Settings) -> str | None:
    """Return which tracker of a run is not installed, with the repair; None if all are."""
    for name in ("tensorboard", "wandb"):
        if settings.tracking.uses(name) and importlib.util.find_spec(name) is None:
            return (
                f"tracking.to: {name} needs a package that is not installed: run `pip install groundray[trackers]`, or "
                f"leave {name} out"
            )
    return None


def missing_key(settings: Settings) -> str | None:
    """Return the repair if W&B's server is used and nothing holds a key for it, so that wandb would ask for one;
    None otherwise."""
    if not settings.tracking.uses("wandb") or settings.tracking.wandb.mode == "offline":
        return None
    if any(os.environ.get(name) for name in (WANDB_KEY, "WANDB_IDENTITY_TOKEN_FILE")) or _has_login():
        return None
    return (
        f"tracking.wandb.mode: expected a key for online, got none: set {WANDB_KEY}, run `wandb login`, or use "
        "--tracking.wandb.mode offline"
    )


def _has_login() -> bool:
    """Return True if `wandb login` has left a key for the server of WANDB_BASE_URL, by default W&B's own."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    for name in (os.environ.get("NETRC", "~/.netrc"), "~/_netrc"):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if host in netrc.netrc(Path(name).expanduser()).hosts:
                return True
    return False
