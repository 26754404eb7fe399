"""The backend of all routes: the service, one thread that computes, and one that decodes pictures.

With one thread each, requests queue for the model, the memory that decoded pictures take is bounded, and a picture that
takes long to decode does not hold up the searches that have none. The event loop stays free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request, UploadFile

from groundray.image_search.errors import BadQuery
from groundray.image_search.http.metrics import Metrics
from groundray.image_search.query import Answer, Outcome, PreparedQuery
from groundray.image_search.service import Service

FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
Result = TypeVar("Result")
Batch = Callable[[Callable[..., Any]], Callable[[PreparedQuery], Awaitable[Outcome]]]


class Backend:
    """A service, its work done on two threads."""

    def __init__(self, service: Service, batch: Batch | None = None, metrics: Metrics | None = None):
        self.service, self._metrics = service, metrics
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")

        async def answer_all(queries: Sequence[PreparedQuery]) -> list[Outcome]:
            return await self.compute(lambda: service.search.answer_or_fail(queries))

        async def answer_one(query: PreparedQuery) -> Outcome:
            return (await answer_all([query]))[0]

        self._outcome = batch(answer_all) if batch else answer_one

    async def answer(self, query: PreparedQuery) -> tuple[Answer, ...]:
        """Answer one prepared query, for each of its alphas, in a batch with those that wait.

        Raises:
            Exception: the query cannot be answered. Others of its batch are.
        """
        outcome = await self._outcome(query)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def compute(self, work: Callable[[], Result]) -> Result:
        """Run some work on the computing thread."""
        return await self._run(self._computing, "compute", work)

    async def decode(self, work: Callable[[], Result]) -> Result:
        """Check a query and decode its picture, on the decoding thread."""
        return await self._run(self._decoding, "decode", work)

    async def _run(self, thread: ThreadPoolExecutor, name: str, work: Callable[[], Result]) -> Result:
        submitted = time.perf_counter()

        def timed() -> Result:
            if self._metrics:
                self._metrics.observe_wait(name, time.perf_counter() - submitted)
            return work()

        return await asyncio.get_running_loop().run_in_executor(thread, timed)


def require_form(request: Request) -> None:
    """Check that the body of a request is a form: the fields of any other would be passed over.

    Raises:
        BadQuery: it is none.
    """
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() not in FORMS:
        raise BadQuery(f"expected a form ({' or '.join(FORMS)}), got {given[:80] or 'no Content-Type'!r}")


async def read_upload(file: UploadFile | None) -> bytes | None:
    """Read an uploaded file; None if there is none. A browser's form sends an empty file where none was chosen."""
    if file is None or not (file.filename or file.size):
        return None
    return await file.read()


def choose_image(id: str | None, upload: bytes | None) -> str | bytes | None:
    """Return the image of a request: an id of the pool, an uploaded picture, or None.

    Raises:
        BadQuery: the request has both.
    """
    if id and upload is not None:
        raise BadQuery("expected image (an id of the pool) or file (an uploaded picture), got both")
    return (id or None) if upload is None else upload
