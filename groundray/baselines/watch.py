"""What shows the progress of a baseline: `cli.progress.Progress` on a command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Watch(Protocol):
    def update(self, task: str, done: int, total: int | None, *, detail: str = "") -> None:
        """Show how much of a task is done."""
        ...

    def track(self, items: Iterable[Item], task: str) -> Iterator[Item]:
        """Yield the items, and show how many have been used."""
        ...


class Unwatched:
    """Shows nothing."""

    def update(self, task: str, done: int, total: int | None, *, detail: str = "") -> None:
        pass

    def track(self, items: Iterable[Item], task: str) -> Iterator[Item]:
        yield from items
