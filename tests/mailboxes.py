"""A stand-in for the handle of a run's `mailbox.Mailbox`, in the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Remote:
    """A method of an actor's handle."""

    def __init__(self, method: Callable[..., Any]):
        self.remote = method


class Mailbox:
    """Records what policies send to the driver; `done` and `end` are what they are told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.wanted: list[str] = []
        self.done = 0
        self.end = ""
        self.withdrawn = 0
        self.put = Remote(self.events.extend)
        self.request_stop = Remote(self.wanted.append)
        self.clear_request = Remote(self._withdraw)
        self.accumulates = False
        self.accumulate = Remote(self._accumulate)
        self.steps_done = Remote(lambda: self.done)

    def _accumulate(self) -> None:
        self.accumulates = True

    def _withdraw(self) -> str:
        self.withdrawn += 1
        return self.end
