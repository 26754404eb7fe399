"""Queries that are answered in one batch of Ray Serve, some of which fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from ray import serve

from groundray.runtime.serve.deployment import batch_queries


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_queries_that_fail_in_a_batch_harm_no_others() -> None:
    @serve.deployment
    class Asker:
        """A replica that asks several queries at once, of two applications: while a new model is taken up."""

        def __init__(self) -> None:
            batch: Any = batch_queries()
            self.sizes: list[int] = []

            async def old(queries: Sequence[str]) -> list[Any]:
                self.sizes.append(len(queries))
                raise RuntimeError("the old application is closed")

            async def new(queries: Sequence[str]) -> list[Any]:
                self.sizes.append(len(queries))
                return [ValueError("no words") if query == "trap" else f"{query}!" for query in queries]

            self.of = {"old": batch(old), "new": batch(new)}

        async def ask(self, asked: list[tuple[str, str]]) -> tuple[list[int], list[str]]:
            found = await asyncio.gather(*(self.of[application](query) for application, query in asked))
            return self.sizes, [*map(repr, found)]

    asker: Any = Asker
    handle = serve.run(asker.bind(), name="asker", route_prefix=None)
    try:
        asked = [("new", "red"), ("old", "red"), ("new", "trap"), ("old", "star"), ("new", "star")]
        sizes, found = handle.ask.remote(asked).result(timeout_s=60)
    finally:
        serve.delete("asker")
    assert sizes == [3, 2]  # one batch, in which each application has one call
    closed = "RuntimeError('the old application is closed')"
    assert found == ["'red!'", closed, "ValueError('no words')", closed, "'star!'"]
