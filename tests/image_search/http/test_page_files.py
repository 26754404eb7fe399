"""Files of the page are kept by a browser for good under the version of the page, and are asked for again otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from groundray.image_search.http.app import PAGE
from groundray.image_search.http.page_files import FOR_GOOD, REVALIDATED, PageFiles, plotly_script


@pytest.fixture
def files(tmp_path: Path) -> PageFiles:
    (tmp_path / "index.html").write_text(
        '<meta name="pool" content="" /><script src="static/app.js"></script><use href="static/icons.svg#x">'
    )
    (tmp_path / "app.js").write_text('import "./api.js"')
    (tmp_path / "api.js").write_text("1")
    return PageFiles(tmp_path)


@pytest.fixture
def client(files: PageFiles) -> TestClient:
    app = FastAPI()
    app.mount("/static", files)
    return TestClient(app, "http://localhost")


def test_the_page_names_its_scripts_with_their_version(files: PageFiles, client: TestClient) -> None:
    version = files.version()
    scripts = f'<script src="static/{version}/app.js"></script><use href="static/icons.svg#x">'
    assert files.index("a&b") == f'<meta name="pool" content="a&amp;b" />{scripts}'
    for path, kept in ((f"{version}/app.js", FOR_GOOD), ("app.js", REVALIDATED), (f"{'0' * 16}/app.js", REVALIDATED)):
        response = client.get(f"/static/{path}")
        assert (response.text, response.headers["cache-control"]) == ('import "./api.js"', kept)
        again = client.get(f"/static/{path}", headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, kept)
        assert client.head(f"/static/{path}").headers["cache-control"] == kept
    for path in (f"{version}/../../secret", f"{version}/nothing.js", version, "", "%2e%2e/secret"):
        assert client.get(f"/static/{path}").status_code == 404


def test_the_version_is_of_the_contents(files: PageFiles, tmp_path: Path) -> None:
    version = files.version()
    os.utime(tmp_path / "api.js", (0, 0))
    assert files.version() == version  # as on another machine
    (tmp_path / "api.js").write_text("2")
    assert files.version() != version
    (tmp_path / "index.html").unlink()
    assert files.index("") is None


def test_plotly_is_compressed_for_browsers(files: PageFiles, client: TestClient) -> None:
    for path in ("/static/plotly.min.js", f"/static/{files.version()}/plotly.min.js"):
        response = client.get(path)
        assert response.headers["content-encoding"] == "gzip"
        assert int(response.headers["content-length"]) < 0.5 * plotly_script().stat().st_size
        assert response.content == plotly_script().read_bytes()
        plain = client.get(path, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == response.content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("name", ["api.js", "plotly.min.js"])
def test_files_are_only_read(client: TestClient, method: str, name: str) -> None:
    for headers in ({}, {"Accept-Encoding": "identity"}):
        assert client.request(method, f"/static/{name}", headers=headers).status_code == 405


def test_every_script_and_style_of_the_page_is_versioned() -> None:
    index = PageFiles(PAGE).index("of-a-pool")
    assert index is not None
    assert '<meta name="pool" content="of-a-pool" />' in index
    version = PageFiles(PAGE).version()
    for name in ("app.js", "style.css"):
        assert f'"static/{version}/{name}"' in index
        assert f'"static/{name}"' not in index
