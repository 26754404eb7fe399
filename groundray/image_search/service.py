"""Search over HTTP: what a page or a program asks, and what it is answered. OpenAPI describes it at /openapi.json.

One thread computes, so that requests wait in line for the model and the memory that pictures take is bounded; the event
loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundray.data.sources.image_files import Unusable
from groundray.image_search import query as asking
from groundray.image_search.errors import BadQuery, UnknownImage
from groundray.image_search.explain import Matcher
from groundray.image_search.query import Prepared, Search
from groundray.image_search.schemas import (
    Answer,
    Answers,
    Asked,
    Found,
    Health,
    Landed,
    MatchFields,
    MatchForm,
    MatchMap,
    Picture,
    Pool,
    PoolFields,
    Problem,
    SearchFields,
    SearchForm,
    ShownAxes,
    ShownNeighbour,
    ShownPhrase,
    ShownWord,
    ShownWords,
    Token,
    WordsFields,
)
from groundray.image_search.uploads import MOST_BYTES, checked
from groundray.image_search.word_space import MOST_AXES, Space

PAGE = Path(__file__).parent / "page"
OTHER_FIELDS = 100_000  # bytes of a form beside its picture
REASONS = {"too large": 413, "not an image": 415}  # why a picture cannot be used; any other is 422
SHOWN_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}

Result = TypeVar("Result")
Batched = Callable[[Prepared], Awaitable[tuple[asking.Answer, ...]]]


@dataclass(frozen=True)
class Service:
    """Everything that is asked about.

    Attributes:
        matcher: None where the model has no stage grounding.
    """

    search: Search
    matcher: Matcher | None
    space: Space

    @staticmethod
    def open(checkpoint: str, images: str, index: str | None = None, norms: str | None = None) -> Service:
        """The service of an exported model and a pool of images; an index that is missing is made here.

        Args:
            index: where indexes are kept (default: beside the model).
            norms: folder of `categories.csv` and `concreteness.csv` (default: the words of the model's tokenizer).

        Raises:
            FileNotFoundError, ValueError: something cannot be used.
        """
        search = Search.open(checkpoint, images, index)
        space = Space.open(checkpoint, norms, search.towers.pieces.loaded.get_vocab())
        return Service(search, Matcher.load(checkpoint), space)


REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "the request cannot be used"},
    404: {"model": Problem, "description": "there is no such image"},
    503: {"description": "overloaded: ask again after Retry-After seconds"},
}
UPLOADS = {
    **REFUSALS,
    413: {"model": Problem, "description": "the picture is too large"},
    415: {"model": Problem, "description": "the file is no picture"},
}


def build(
    service: Service, batched: Callable[[Callable[..., Any]], Batched] | None = None, page: Path = PAGE
) -> FastAPI:
    """The app.

    Args:
        batched: makes of a function that answers several queries one that answers a single query together with those
            that are waiting (default: each by itself).
        page: folder of the page: `index.html`, and what lies at /static.
    """
    app = FastAPI(
        title="groundray search",
        description="Search a pool of images by picture, by word, or by a mix of both, and see why.",
        version="1",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most=MOST_BYTES + OTHER_FIELDS)
    computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
    search, space = service.search, service.space

    async def compute(work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(computing, work)

    async def several(queries: Sequence[Prepared]) -> list[tuple[asking.Answer, ...]]:
        return await compute(lambda: search.answer(queries))

    async def alone(query: Prepared) -> tuple[asking.Answer, ...]:
        return (await several([query]))[0]

    answer = batched(several) if batched else alone

    @lru_cache(MOST_AXES)
    def listed(axes: int) -> bytes:
        return _words(space, axes).model_dump_json().encode()

    async def look(fields: SearchFields, brought: bytes | None) -> Answers:
        started = time.perf_counter()
        text = fields.text.strip()
        image = _one_image(fields.image, brought)
        prepared = await compute(
            lambda: search.prepare(asking.Query(text or None, image, tuple(fields.alpha), fields.k))
        )
        found = await answer(prepared)
        return Answers(
            query=Asked(text=text, image=fields.image or None, uploaded=brought is not None),
            answers=[
                Answer(
                    alpha=one.alpha,
                    results=[Found(id=hit.id, width=hit.width, height=hit.height, score=hit.score) for hit in one.hits],
                )
                for one in found
            ],
            milliseconds=round(1000 * (time.perf_counter() - started), 2),
        )

    async def explain(fields: MatchFields, brought: bytes | None) -> MatchMap:
        matcher, image = service.matcher, _one_image(fields.image, brought)
        if matcher is None:
            raise HTTPException(409, "the model has no stage grounding, which makes match maps: serve one that has")
        if image is None:
            raise BadQuery("expected an image beside the text: the id of one of the pool, or a file")

        def work() -> Any:
            encoded = checked(image) if isinstance(image, bytes) else search.index.pictures[search.index.row(image)]
            return matcher.match(fields.text, encoded)

        found = await compute(work)
        rows, columns = found.words[0].map.shape
        return MatchMap(
            rows=rows,
            columns=columns,
            tokens=[
                Token(
                    text=word.text,
                    start=word.start,
                    end=word.end,
                    peak=word.peak,
                    score=word.score,
                    map=word.map.astype(float).round(5).tolist(),
                )
                for word in found.words
            ],
            similarity=found.similarity,
            crop=found.crop,
            first=found.first,
        )

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether it serves, and what."""
        return Health(
            images=len(search.index),
            words=len(space.words.listed),
            model=search.towers.name,
            stages=list(search.towers.stages),
        )

    @app.get("/search", responses=REFUSALS)
    async def search_by_id(fields: Annotated[SearchFields, Query()]) -> Answers:
        """The images that lie nearest to a text, to an image of the pool, or to a mix of both."""
        return await look(fields, None)

    @app.post("/search", responses=UPLOADS)
    async def search_by_file(fields: Annotated[SearchForm, Form()]) -> Answers:
        """The same with a picture that the asker brings along."""
        return await look(fields, await _read(fields.file))

    @app.get("/match-map", responses=REFUSALS)
    async def match_map_by_id(fields: Annotated[MatchFields, Query()]) -> MatchMap:
        """How well each position of an image of the pool matches each word of a text."""
        return await explain(fields, None)

    @app.post("/match-map", responses=UPLOADS)
    async def match_map_by_file(fields: Annotated[MatchForm, Form()]) -> MatchMap:
        """The same with a picture that the asker brings along."""
        return await explain(fields, await _read(fields.file))

    @app.get("/words", responses=REFUSALS, response_model=ShownWords | Landed)
    async def words(fields: Annotated[WordsFields, Query()]) -> Response | Landed:
        """All words on the principal axes of each model; or, given a text, where it lands and what is next to it."""
        if fields.text is None:
            return Response(listed(fields.axes), media_type="application/json")
        text = fields.text.strip()
        found = await compute(lambda: space.land(text, fields.axes, fields.k))
        return Landed(
            text=text,
            at={name: list(one.at) for name, one in found.items()},
            neighbours={
                name: [ShownNeighbour(text=near.text, cosine=near.cosine) for near in one.neighbours]
                for name, one in found.items()
            },
        )

    @app.get("/pool", responses=REFUSALS)
    async def pool(fields: Annotated[PoolFields, Query()]) -> Pool:
        """Some images of the pool, drawn by the seed."""
        index = search.index
        drawn = np.random.default_rng(fields.seed).permutation(len(index))[: fields.k].tolist()
        return Pool(
            results=[
                Picture(id=index.ids[row], width=int(index.sizes[row, 0]), height=int(index.sizes[row, 1]))
                for row in drawn
            ]
        )

    @app.get("/thumbnails/{id:path}", responses=REFUSALS, response_class=Response)
    async def thumbnail(id: str, request: Request) -> Response:
        """A small JPEG of an image."""
        row = search.index.row(id)
        return await _cached(
            request, f"{search.index.folder.name}-{row}", lambda: (search.index.thumbnails[row], "image/jpeg")
        )

    @app.get("/images/{id:path}", responses=REFUSALS, response_class=Response)
    async def image(id: str, request: Request) -> Response:
        """The whole image."""
        row = search.index.row(id)
        return await _cached(request, f"{search.index.folder.name}-{row}", lambda: shown(search.index.pictures[row]))

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        if not (page / "index.html").is_file():
            raise HTTPException(404, f"there is no page at {page}; /openapi.json describes what can be asked")
        return FileResponse(page / "index.html")

    @app.get("/static/plotly.min.js", include_in_schema=False)
    async def plotly() -> FileResponse:
        return FileResponse(plotly_script(), media_type="text/javascript")

    app.mount("/static", StaticFiles(directory=page, check_dir=False))

    @app.exception_handler(RequestValidationError)
    async def unusable_fields(request: Request, error: RequestValidationError) -> Response:
        return _problem(422, "; ".join(map(_said, error.errors())))

    @app.exception_handler(BadQuery)
    async def unusable(request: Request, error: BadQuery) -> Response:
        return _problem(422, str(error))

    @app.exception_handler(UnknownImage)
    async def unknown(request: Request, error: UnknownImage) -> Response:
        return _problem(404, str(error))

    @app.exception_handler(Unusable)
    async def unusable_picture(request: Request, error: Unusable) -> Response:
        return _problem(REASONS.get(error.reason, 422), str(error))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _problem(500, "the service failed to answer; its log says why")

    return app


class BodyLimit:
    """Refuses a request whose body is larger than it may be: by what it says of itself, or else when it is."""

    def __init__(self, app: ASGIApp, most: int):
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self._most:
            await _problem(413, self._detail(int(told)))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise HTTPException(413, self._detail(received))
            return message

        await self._app(scope, counted, send)

    def _detail(self, size: int) -> str:
        return f"expected a picture of at most {MOST_BYTES:,} bytes, got a request of {size:,} or more"


def plotly_script() -> Path:
    """The script of plotly's plots, from the installed package."""
    found = importlib.util.find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "package_data" / "plotly.min.js"


def shown(encoded: bytes) -> tuple[bytes, str]:
    """An encoded image as browsers show it, and its media type: others than SHOWN_AS_THEY_ARE become JPEG."""
    with Image.open(io.BytesIO(encoded)) as image:
        if image.format in SHOWN_AS_THEY_ARE:
            return encoded, SHOWN_AS_THEY_ARE[image.format]
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=90)
        return file.getvalue(), "image/jpeg"


async def _cached(request: Request, tag: str, read: Callable[[], tuple[bytes, str]]) -> Response:
    """A picture that a browser asks for once, and of which it asks later whether it is still the same."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    content, kind = await asyncio.to_thread(read)
    return Response(content, media_type=kind, headers=headers)


async def _read(file: UploadFile | None) -> bytes | None:
    if file is None or not (file.filename or file.size):  # a browser's form sends that where no file is chosen
        return None
    return await file.read()


def _one_image(id: str | None, brought: bytes | None) -> str | bytes | None:
    """The image of a request, if it has one.

    Raises:
        BadQuery: it has two.
    """
    if id and brought is not None:
        raise BadQuery("expected image, the id of one of the pool, or file, a picture brought along; got both")
    return (id or None) if brought is None else brought


def _words(space: Space, axes: int) -> ShownWords:
    models = space.models
    return ShownWords(
        models=list(models),
        axes=[ShownAxes(model=name, explained=one.explained[:axes].tolist()) for name, one in models.items()],
        words=[
            ShownWord(
                text=word.text,
                category=word.category,
                concreteness=word.concreteness,
                at={name: one.at[place, :axes].round(5).tolist() for name, one in models.items()},
            )
            for place, word in enumerate(space.words.listed)
        ],
        left_out=space.words.left_out,
        phrases=[ShownPhrase(text=one.phrase, target=one.target) for one in space.words.examples],
    )


def _said(error: Any) -> str:
    """A mistake in a field, for a person."""
    where = ".".join(str(part) for part in error["loc"][1:])
    got = "" if error["type"] == "missing" else f", got {str(error['input'])[:80]!r}"
    return f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}{got}"


def _problem(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
