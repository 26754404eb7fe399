"""What a service shows Prometheus of itself: refused requests by reason, how long work waits, the pool, the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REASONS = {
    400: "host",
    401: "token",
    403: "origin",
    404: "unknown",
    408: "time",
    413: "size",
    415: "no picture",
    422: "invalid",
    429: "rate",
    500: "error",
    503: "busy",
}


class Metrics(Protocol):
    """Where an application's measurements go."""

    def show_pool(self, model: str, images: int) -> None:
        """Show which model is served, on how many images."""
        ...

    def observe_wait(self, thread: str, seconds: float) -> None:
        """Record how long some work has waited for its thread."""
        ...

    def exposition(self) -> str:
        """Return the metrics of all of the service's processes in Prometheus's text format. Takes a while."""
        ...


class CountRefusals:
    """Middleware that counts the responses that are no answer, by the reason in REASONS.

    Args:
        count: receives the reason of each.
    """

    def __init__(self, app: ASGIApp, count: Callable[[str], None]):
        self._app, self._count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._count(REASONS.get(message["status"], "other"))
            await send(message)

        await self._app(scope, receive, counted)


def merge_expositions(pages: list[str], prefixes: tuple[str, ...]) -> str:
    """Return several pages in Prometheus's text format as one, with the metrics whose names begin with a prefix.

    The description of a metric stands once, and all of its samples follow.
    """
    families: dict[str, tuple[dict[str, str], list[str]]] = {}
    for page in pages:
        samples: list[str] = []
        for line in page.splitlines():
            if line.startswith("# "):
                kind, name, *_ = [*line[2:].split(" ", 2), ""]
                descriptions, samples = families.setdefault(name, ({}, []))
                descriptions.setdefault(kind, line)
            elif line:
                samples.append(line)
    return "".join(
        f"{line}\n"
        for name, (descriptions, samples) in families.items()
        if name.startswith(prefixes)
        for line in (*descriptions.values(), *samples)
    )
