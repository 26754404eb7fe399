"""The mailbox between a run's driver and its workers. Its process loads none of the libraries that train."""

from __future__ import annotations

from typing import Any

import ray

from groundray.training.events import Event, StepDone

FLUSH_SECONDS = 1.0


@ray.remote(num_cpus=0)
class Mailbox:
    """An actor on the driver's node that holds events for the driver, and stop requests for rank 0."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._wanted = ""
        self._last_step: dict[str, int] = {}
        self._group, self._told = "", dict[int, Any]()
        self._accumulates = False

    def put(self, events: list[Event]) -> str:
        """Add events, and return the pending stop reason for rank 0 or an empty string."""
        self._events += events
        for event in events:
            if isinstance(event, StepDone):
                self._last_step[event.stage] = max(event.step, self._last_step.get(event.stage, 0))
        return self._wanted

    def take(self) -> list[Event]:
        """Return and remove all events."""
        events, self._events = self._events, []
        return events

    def request_stop(self, notice: str) -> None:
        """Set the stop reason. `stopped`, the end of the run, is not replaced by others."""
        if self._wanted != "stopped":
            self._wanted = notice

    def clear_request(self) -> str:
        """Clear a stop reason that concerned the last worker group, and return what remains: `stopped` or empty."""
        self.request_stop("")
        return self._wanted

    def exchange(self, group: str, rank: int, own: Any) -> dict[int, Any]:
        """Keep what a rank tells the others of its group, and return what each of them has told last.

        Args:
            group: when the worker group started, in ns since 1970. What an older group sends is not kept.
        """
        if int(group) > int(self._group or 0):
            self._group, self._told = group, {}
        if group != self._group:
            return {}
        self._told[rank] = own
        return self._told

    def accumulate(self) -> None:
        """Have the next workers of the run that have several chunks accumulate, whatever its settings."""
        self._accumulates = True

    def accumulates(self) -> bool:
        """Return True if workers are to accumulate."""
        return self._accumulates

    def steps_done(self) -> int:
        """Return the number of different steps done so far; repeated steps count once."""
        return sum(self._last_step.values())
