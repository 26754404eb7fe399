"""The files of the web page: under /static, and under /static/VERSION, where a browser keeps them for good.

`index.html` names its scripts and styles with the version, which changes with any of the files; modules that a script
imports are found beside it.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import html
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Scope

FOR_GOOD = "max-age=31536000, immutable"
REVALIDATED = "no-cache"
PLOTLY = "plotly.min.js"
LINK = re.compile(r'"static/([\w.-]+\.(?:js|css))"')  # a script or a style of index.html
POOL = '<meta name="pool" content="" />'
VERSION = re.compile(r"[0-9a-f]{16}")


class PageFiles(StaticFiles):
    """The files of a folder, and plotly's script, each also below the version of all.

    Args:
        page: the folder.
    """

    def __init__(self, page: Path):
        super().__init__(directory=page, check_dir=False)
        self._page = page

    def version(self) -> str:
        """Return the version of the files as they are now."""
        files = sorted(path for path in (*self._page.glob("*"), plotly_script()) if path.is_file())
        return _version(tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files))

    def index(self, pool: str) -> str | None:
        """Return the page, with links to this version of its files, and with the version of the pool, which it adds to
        the addresses of pictures; None if there is no page."""
        path = self._page / "index.html"
        if not path.is_file():
            return None
        linked = LINK.sub(rf'"static/{self.version()}/\1"', path.read_text("utf-8"))
        return linked.replace(POOL, POOL.replace('""', f'"{html.escape(pool)}"'))

    async def get_response(self, path: str, scope: Scope) -> Response:
        first, _, below = path.replace("\\", "/").partition("/")
        name = below if VERSION.fullmatch(first) else path
        plotly = name == PLOTLY and scope["method"] == "GET"  # HeadAsGet makes one of HEAD; others are refused below
        response = await (_plotly(scope) if plotly else super().get_response(name, scope))
        response.headers["Cache-Control"] = FOR_GOOD if name != path and first == self.version() else REVALIDATED
        return response


def plotly_script() -> Path:
    """Return the path of plotly's script in the installed package."""
    package = importlib.util.find_spec("plotly")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "package_data" / PLOTLY


async def _plotly(scope: Scope) -> Response:
    """Return plotly's script, compressed once: its 5 MB would take a tenth of a second for each browser."""
    if "gzip" not in Headers(scope=scope).get("accept-encoding", ""):
        return FileResponse(plotly_script(), media_type="text/javascript")
    headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    content = await asyncio.to_thread(_compressed, plotly_script())
    return Response(content, media_type="text/javascript", headers=headers)


@lru_cache(1)
def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 6, mtime=0)


@lru_cache(8)
def _version(files: tuple[tuple[str, int, int], ...]) -> str:
    """Return a hash of the names and contents of files, which are read again if one of them changes."""
    digest = hashlib.sha256()
    for name, *_ in files:
        content = hashlib.sha256(Path(name).read_bytes()).hexdigest()
        digest.update(f"{Path(name).name} {content}\n".encode())
    return digest.hexdigest()[:16]
