"""The backend of all routes: the service, one thread that computes, and one that decodes pictures.

With one thread each, requests queue for the model, the memory that decoded pictures take is bounded, and a picture that
takes long to decode does not hold up the searches that have none. The event loop stays free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import UploadFile

from groundray.image_search.errors import BadQuery
from groundray.image_search.query import Answer, PreparedQuery
from groundray.image_search.service import Service

Result = TypeVar("Result")
AnswerOne = Callable[[PreparedQuery], Awaitable[tuple[Answer, ...]]]
Batch = Callable[[Callable[..., Any]], AnswerOne]


class Backend:
    """A service, its work done on two threads.

    Attributes:
        answer: answers one prepared query, for each of its alphas.
    """

    def __init__(self, service: Service, batch: Batch | None = None):
        self.service = service
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decode")

        async def answer_all(queries: Sequence[PreparedQuery]) -> list[tuple[Answer, ...]]:
            return await self.compute(lambda: service.search.answer(queries))

        async def answer_one(query: PreparedQuery) -> tuple[Answer, ...]:
            return (await answer_all([query]))[0]

        self.answer: AnswerOne = batch(answer_all) if batch else answer_one

    async def compute(self, work: Callable[[], Result]) -> Result:
        """Run some work on the computing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._computing, work)

    async def decode(self, work: Callable[[], Result]) -> Result:
        """Check a query and decode its picture, on the decoding thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, work)


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
