"""A service with a token answers those who know it, and tells no one else anything."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from httpx2 import Response
from search_fixtures import TOKEN
from starlette.websockets import WebSocketDisconnect

from groundray.image_search.http import auth_token
from groundray.image_search.http.auth_token import RequireToken, find_token

URL = "http://localhost"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*"}


def app(trust_proxy: bool = False) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequireToken, token=TOKEN, trust_proxy=trust_proxy)
    for path in ("/", "/healthz", "/search", "/static/app.js", "/thumbnails/{id:path}"):
        app.get(path)(lambda: "seen")
    app.post("/search")(lambda: "computed")

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()

    return app


@pytest.fixture
def client() -> TestClient:
    return TestClient(app(), URL, follow_redirects=False)


def told(response: Response) -> str:
    return response.text + str(response.headers)


def cookie_of(response: Response) -> tuple[str, str, set[str]]:
    """Name, value and attributes of the one cookie that a response sets."""
    (header,) = response.headers.get_list("set-cookie")
    pair, *attributes = header.split("; ")
    name, _, value = pair.partition("=")
    return name, value, set(attributes)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "path",
    [
        *("/", "/search", "/search?text=red", "/static/app.js", "/thumbnails/80", "/openapi.json", "/nothing"),
        *("/healthz/", "/healthz/../search", "/healthz%2f..%2fsearch", "/HEALTHZ", "//healthz", "/metrics"),
    ],
)
def test_every_request_without_the_token_is_401(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert "set-cookie" not in response.headers


def test_probes_need_no_token(client: TestClient) -> None:
    assert client.get("/healthz").json() == "seen"


@pytest.mark.parametrize("path", ["/", "/search", "/static/app.js", "/thumbnails/a/b.jpg"])
def test_a_program_sends_the_token(client: TestClient, path: str) -> None:
    assert client.get(path, headers=BEARER).json() == "seen"
    assert client.get(path, headers={"Authorization": f"bearer  {TOKEN} "}).json() == "seen"


@pytest.mark.parametrize(
    "given",
    [
        *(f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}", "Bearer", "Bearer ", TOKEN),
        *(f"Basic {TOKEN}", f"Bearer {TOKEN} {TOKEN}", "Bearer é", f"Bearer {TOKEN}, Bearer {TOKEN}"),
    ],
)
def test_a_wrong_token_is_401_and_is_not_repeated(client: TestClient, given: str) -> None:
    response = client.get("/search", headers={"Authorization": given.encode("latin-1")})
    assert response.status_code == 401
    assert TOKEN not in told(response)


def test_a_browser_gives_the_token_in_a_form(client: TestClient) -> None:
    asked = client.get("/", headers=BROWSER)
    assert (asked.status_code, asked.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert 'type="password"' in asked.text
    wrong = client.post("/", data={"token": TOKEN[1:]}, headers=BROWSER)
    assert wrong.status_code == 401
    assert "not the token" in wrong.text
    assert TOKEN[1:] not in told(wrong)

    right = client.post("/?a=1", data={"token": TOKEN}, headers=BROWSER)
    assert (right.status_code, right.headers["location"]) == (303, "/?a=1")
    name, value, attributes = cookie_of(right)
    assert attributes == {"HttpOnly", "SameSite=lax", "Path=/", f"Max-Age={auth_token.COOKIE_SECONDS}"}
    assert TOKEN not in told(right)
    for method, path in (("GET", "/"), ("GET", "/thumbnails/80"), ("POST", "/search")):
        assert client.request(method, path).status_code == 200  # the client has kept the cookie
        headers = {"authorization": "Basic cHJveHk6cGFzc3dvcmQ="}  # a proxy in front has asked for it
        assert client.request(method, path, headers=headers).status_code == 200
        assert client.request(method, path, headers={"authorization": "Bearer another-token-of-old"}).status_code == 401
    client.cookies.clear()
    for other in (value[:-1], "", TOKEN):
        assert client.get("/search", headers={"Cookie": f"{name}={other}"}).status_code == 401
    assert client.get("/search", headers={"Cookie": f"other={value}"}).status_code == 401
    assert client.get("/search", headers={"Cookie": f"a=b; {name}={value}"}).status_code == 200


def test_a_token_in_the_address_is_taken_from_it(client: TestClient) -> None:
    opened = client.get(f"/?a=%26&token={TOKEN}&b=", headers=BROWSER)
    assert (opened.status_code, opened.headers["location"]) == (303, "/?a=%26&b=")
    assert TOKEN not in told(opened)
    assert client.get("/").json() == "seen"
    client.cookies.clear()
    for wrong in ("", TOKEN[:-1], f"{TOKEN}&token="):
        response = client.get(f"/?token={wrong}", headers=BROWSER)
        assert response.status_code == 401
        assert "set-cookie" not in response.headers
    for path in (
        f"/search?text=red&token={TOKEN}",
        f"{URL}//evil.example/?token={TOKEN}",
        f"/thumbnails/80?token={TOKEN}",
    ):
        response = client.get(path, headers=BEARER)  # not even with the token: it would reach messages about fields
        assert (response.status_code, response.headers.get("location")) == (401, None)
        assert TOKEN not in told(response)
    assert client.head(f"/?token={TOKEN}").status_code == 401


@pytest.mark.parametrize(
    "body",
    [b"", b"token=", b"token", b"\xff\xfe=\x00", b"x" * 10_000, b"x=" + b"y" * 5000 + f"&token={TOKEN}".encode()],
)
def test_other_bodies_of_the_form_are_401(client: TestClient, body: bytes) -> None:
    assert client.post("/", content=body, headers=BROWSER).status_code == 401


def test_no_websocket_is_opened(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/live", headers=BEARER):
        pass


@pytest.mark.parametrize(
    ("url", "trust_proxy", "headers", "secure"),
    [
        ("http://localhost", False, {}, False),
        ("https://localhost", False, {}, True),
        ("http://localhost", False, {"X-Forwarded-Proto": "https"}, False),
        ("http://localhost", True, {"X-Forwarded-Proto": "https"}, True),
        ("https://localhost", True, {"X-Forwarded-Proto": "http"}, False),
    ],
)
def test_an_encrypted_connection_has_a_secure_cookie(
    url: str, trust_proxy: bool, headers: dict[str, str], secure: bool
) -> None:
    client = TestClient(app(trust_proxy), url, follow_redirects=False)
    _, _, attributes = cookie_of(client.post("/", data={"token": TOKEN}, headers=headers))
    assert ("Secure" in attributes) == secure


def test_tokens_are_compared_in_constant_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `hmac.compare_digest`, of texts of one length whatever was given."""
    lengths: list[tuple[int, int]] = []

    def watched(one: Any, other: Any) -> bool:
        lengths.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    class Watched:
        new, compare_digest = staticmethod(hmac.new), staticmethod(watched)

    monkeypatch.setattr(auth_token, "hmac", Watched)
    given = [{"Authorization": f"Bearer {TOKEN[:size]}"} for size in (1, 10, len(TOKEN))]
    statuses = [client.get("/search", headers=headers).status_code for headers in given]
    client.get("/search", headers={"Cookie": "groundray=x"})
    client.post("/", data={"token": "x"})
    client.get("/?token=xyz")
    assert statuses == [401, 401, 200]
    assert lengths == [(32, 32)] * 6


def test_the_token_comes_from_an_option_a_file_or_the_environment(tmp_path: Path) -> None:
    file, environment = tmp_path / "token", {auth_token.VARIABLE: "e" * 16}
    file.write_text(f"{'f' * 16}\n")
    assert find_token(None, None, {}) is None
    assert find_token("g" * 16, None, environment) == "g" * 16
    assert find_token(None, str(file), environment) == "f" * 16
    assert find_token(None, None, environment) == "e" * 16


@pytest.mark.parametrize(
    ("given", "content", "environment", "message"),
    [
        ("hunter2", None, {}, "--auth-token: expected at least 16 ASCII characters without spaces, got 7 characters:"),
        ("", None, {}, "--auth-token: expected at least 16 .* got 0"),
        ("hunter2 hunter2 hunter2", None, {}, "--auth-token: .* got 23 characters with others"),
        ("hüter2hunter2hunter2", None, {}, "--auth-token: .* with others"),
        (None, b"hunter2", {}, "--auth-token-file: expected at least 16"),
        (None, b"\xff\xfehunter2", {}, r"--auth-token-file: .* \(no text in UTF-8\)"),
        (None, None, {auth_token.VARIABLE: ""}, f"{auth_token.VARIABLE}: .* got 0"),
        ("g" * 16, b"f" * 16, {}, "--auth-token: expected this or --auth-token-file, got both"),
    ],
)
def test_a_token_that_is_easily_guessed_is_an_error_that_does_not_repeat_it(
    tmp_path: Path, given: str | None, content: bytes | None, environment: dict[str, str], message: str
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        find_token(given, None if content is None else str(file), environment)
    assert "hunter" not in str(caught.value)
    with pytest.raises(ValueError, match=r"--auth-token-file: expected a file with a token, got .*nowhere"):
        find_token(None, str(tmp_path / quote("nowhere")), {})
