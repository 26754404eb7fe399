"""Takes up a new model, and images that were added or removed, while requests are answered.

A thread looks every so many seconds whether what is served has changed. Then it opens the new application beside the
one that answers: model, index, match maps and words together. When it is open, further requests go to it. A request
that has begun is answered by the application that it began with, whose memory is free when the last one has ended. If
the new one cannot be opened, the old one goes on, and `/healthz` and the log say why. A process that is started anew
meanwhile, as after a crash, has no old one: it may be given an earlier one to begin with.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from fastapi.dependencies import models as dependencies
from starlette.types import ASGIApp, Receive, Scope, Send

from groundray.resident_memory import give_back_freed

UPDATE = "update"  # of a request's state: what `/healthz` says of the newest change
MAX_RETRY_SECONDS = 3600.0  # between two attempts to open what could not be opened


@dataclass(frozen=True)
class Failure:
    """A state that could not be opened.

    Attributes:
        reason: why.
        wait: seconds until the next attempt.
        retry: when that is, by the monotonic clock.
    """

    state: str
    reason: str
    wait: float
    retry: float


class RenewedApp:
    """ASGI application that hands each request to the newest one that it has opened.

    Args:
        look: returns what changes when the served model or images do. It is called often.
        open: opens the application of what is there now.
        seconds: time between looks; None never looks by itself.
        open_earlier: opens an application to begin with where the newest cannot be opened (default: there is none).

    Raises:
        Exception: what `look` or `open` raises, the first time; if there is an earlier application, what opening that
            raises.
    """

    def __init__(
        self,
        look: Callable[[], str],
        open: Callable[[], ASGIApp],
        seconds: float | None,
        open_earlier: Callable[[], ASGIApp] | None = None,
    ):
        self._look, self._open, self._seconds = look, open, seconds or 0.0
        self._retired: list[weakref.ref[ASGIApp]] = []
        self._failure: Failure | None = None
        self._update = ""
        try:
            self._state, self._app = look(), open()
        except Exception as error:
            if open_earlier is None:
                raise
            self._state, self._app = "", open_earlier()
            self._tell(f"the newest model cannot be opened, and an earlier one is served: {_one_line(error)}")
        if seconds:
            threading.Thread(target=self._watch, name="groundray-renewal", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # it outlives the application that it begins with
            await _live(receive, send)
            return
        await self._app({**scope, "state": {**scope.get("state", {}), UPDATE: self._update}}, receive, send)

    def renew(self) -> bool:
        """Open what has changed, and return whether further requests go to it. Raises nothing."""
        try:
            state = self._look()
        except Exception as error:  # noqa: BLE001  of a file, a store or a server; the next look may succeed
            self._tell(f"cannot look for changes: {_one_line(error)}")
            return False
        if state == self._state:
            self._update, self._failure = "", None
            return False
        failed = self._failure if self._failure and self._failure.state == state else None
        if failed and time.monotonic() < failed.retry:
            self._update = failed.reason
            return False
        self._tell("the model or the images have changed and are being opened")
        try:
            app = self._open()
        except Exception as error:  # noqa: BLE001  whatever it is, the old application goes on
            wait = min(MAX_RETRY_SECONDS, 2 * (failed.wait if failed else self._seconds))
            reason = f"what has changed cannot be opened, and the earlier is served: {_one_line(error)}"
            self._failure = Failure(state, reason, wait, time.monotonic() + wait)
            self._tell(reason)
            return False
        self._retired.append(weakref.ref(self._app))
        self._app, self._state, self._failure = app, state, None
        self._tell("what has changed is served")
        self._update = ""
        return True

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds)
            self.renew()
            self.let_go()

    def let_go(self) -> None:
        """Free the memory of earlier applications, each once its last request has ended."""
        if not self._retired:
            return
        for each in vars(dependencies).values():  # FastAPI remembers routes, and with them all that they refer to
            if clear := getattr(each, "cache_clear", None):
                clear()
        gc.collect()  # an application refers to itself
        kept = [app for app in self._retired if app() is not None]
        if len(kept) < len(self._retired):
            give_back_freed()
        self._retired = kept

    def _tell(self, line: str) -> None:
        if line != self._update:
            logging.getLogger(__name__).warning("%s", line)
        self._update = line


async def _live(receive: Receive, send: Send) -> None:
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
