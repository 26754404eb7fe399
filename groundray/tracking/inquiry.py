"""A check before a run: whether its MLflow experiment or its MLflow run was deleted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from groundray.config import Settings
from groundray.tracking.store import Deleted, client_of, experiment_of, find_run, store_exists, uri_of
from groundray.training import identity, layout

CHECK_SECONDS = 15.0  # for the answer of a server before a run starts


def _run_id(settings: Settings) -> str | None:
    """Return the id of the run of these settings, None if it has not started."""
    run = identity.read(layout.folder_of(settings))
    return run.id if run else None


class Inquiry:
    """Asks, while other checks of a run are made, whether its experiment or its MLflow run was deleted."""

    def __init__(self, settings: Settings, get_id: Callable[[Settings], str | None] = _run_id):
        """Ask in a thread; do nothing if the run is not tracked.

        Args:
            get_id: returns the id of the run, or of a sweep; None if it has not started.
        """
        self._settings, self._get_id = settings, get_id
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._ask, name="groundray-tracking-check", daemon=True)
        if settings.tracking.enabled and store_exists(uri_of(settings)):
            self._thread.start()

    def problem(self) -> str | None:
        """Return what was deleted, with the repair. None if nothing was, or if there is no answer: a run that starts
        reports a server that cannot be reached, and what it misses is logged later."""
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
