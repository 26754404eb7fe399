"""Asks for a token: of programs in the header Authorization, of browsers in a form, which a cookie then stands for."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from groundray.image_search.http.client import is_secure

VARIABLE = "GROUNDRAY_AUTH_TOKEN"
MIN_CHARACTERS = 16
OPEN_PATHS = ("/healthz",)  # probes have no token
COOKIE_SECONDS = 30 * 24 * 3600
FORM_BYTES = 4096  # of the body of a login
REFUSED = "expected the service's token as `Authorization: Bearer TOKEN`; in a browser, reload the page to give it"


class RequireToken:
    """Middleware that answers 401 to every request without the token, except those of OPEN_PATHS.

    A program sends `Authorization: Bearer TOKEN`. A browser that opens the page gets a form, which it sends as POST /;
    or the page is opened with `?token=TOKEN`. Either sets a cookie and redirects to the page without the token. The
    cookie holds a keyed hash of the token, is out of reach of scripts (HttpOnly), is not sent with requests that other
    sites cause (SameSite), and is valid until the token changes. Tokens are compared in constant time, and appear in no
    message.

    Args:
        trust_proxy: whether the connection of the browser is encrypted says the header X-Forwarded-Proto.
    """

    def __init__(self, app: ASGIApp, token: str, trust_proxy: bool = False):
        self._app, self._trust_proxy = app, trust_proxy
        self._token, self._cookie = _digest(token.encode()), _keyed(token, "cookie")
        # another service on the same host has its own: cookies do not tell ports apart
        self._cookie_name = f"groundray_{_keyed(token, 'name')[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            response = await self._refusal(scope, receive)
            await (response or self._app)(scope, receive, send)

    async def _refusal(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the response of a request that does not reach the application."""
        path, method, query = scope["path"], scope["method"], scope["query_string"].decode("latin-1")
        if path in OPEN_PATHS:
            return None
        if path == "/" and method == "POST":
            return self._login(scope, await _form_token(receive))
        in_address = [value for name, value in parse_qsl(query, keep_blank_values=True) if name == "token"]
        if in_address and path == "/" and method == "GET":
            return self._login(scope, in_address[-1].replace(" ", "+"))  # a plus sign that was not escaped
        if in_address or not self._is_known(scope):  # a token in another address would reach messages about fields
            return _ask(scope, "")
        return None

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":  # another scheme is for a proxy in front, which the browser tells its password
            return self._is_token(given.strip())
        return hmac.compare_digest(
            _digest(Request(scope).cookies.get(self._cookie_name, "").encode()), _digest(self._cookie.encode())
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(_digest(given.encode("utf-8", "surrogateescape")), self._token)

    def _login(self, scope: Scope, given: str) -> Response:
        if not self._is_token(given):
            return _ask(scope, "This is not the token of this service.")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        left = urlencode([pair for pair in query if pair[0] != "token"])
        response = RedirectResponse(f"/?{left}" if left else "/", 303)
        response.set_cookie(
            self._cookie_name,
            self._cookie,
            max_age=COOKIE_SECONDS,
            secure=is_secure(scope, self._trust_proxy),
            httponly=True,
            samesite="lax",
        )
        return response


def find_token(given: str | None, file: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the token that a service asks for; None if it asks for none.

    Args:
        given: the token itself.
        file: path of a file that holds it.
        environment: holds it as VARIABLE, if neither is given.

    Raises:
        ValueError: the file cannot be read, or the token is too easily guessed; no message holds a token.
    """
    if given is not None and file is not None:
        raise ValueError("--auth-token: expected this or --auth-token-file, got both")
    if file is not None:
        try:
            token, source = Path(file).read_text("utf-8").strip(), "--auth-token-file"
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text in UTF-8"
            raise ValueError(f"--auth-token-file: expected a file with a token, got {file} ({reason})") from None
    elif given is not None:
        token, source = given, "--auth-token"
    elif VARIABLE in environment:
        token, source = environment[VARIABLE], VARIABLE
    else:
        return None
    if not re.fullmatch(rf"[!-~]{{{MIN_CHARACTERS},}}", token):
        raise ValueError(
            f"{source}: expected at least {MIN_CHARACTERS} ASCII characters without spaces, got {len(token)} "
            f"characters{'' if len(token) < MIN_CHARACTERS else ' with others among them'}: make one with "
            "`openssl rand -hex 32`"
        )
    return token


def _digest(text: bytes) -> bytes:
    """Return a hash to compare: `compare_digest` takes the same time for texts of the same length alone."""
    return hashlib.sha256(text).digest()


def _keyed(token: str, purpose: str) -> str:
    return hmac.new(token.encode(), f"groundray search {purpose}".encode(), hashlib.sha256).hexdigest()


async def _form_token(receive: Receive) -> str:
    """Return the field `token` of a form; empty if there is none."""
    body, more = b"", True
    while more and len(body) <= FORM_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
    if len(body) > FORM_BYTES:
        return ""
    return parse_qs(body.decode("latin-1")).get("token", [""])[-1]


def _ask(scope: Scope, problem: str) -> Response:
    """Return status 401: a form for a browser that opens the page, JSON otherwise."""
    headers = {"WWW-Authenticate": 'Bearer realm="groundray"'}
    if scope["path"] == "/" and "text/html" in Headers(scope=scope).get("accept", ""):
        return HTMLResponse(FORM.format(problem=problem), 401, headers)
    return JSONResponse({"detail": REFUSED}, 401, headers)


FORM = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <meta name="color-scheme" content="light dark" />
    <title>groundray: token</title>
    <style>
      body {{ font: 1rem/1.5 system-ui, sans-serif; display: grid; min-height: 90vh; place-items: center; }}
      main {{ width: min(24rem, 90vw); }}
      input, button {{ font: inherit; box-sizing: border-box; width: 100%; padding: 0.6rem; margin-top: 0.4rem; }}
    </style>
  </head>
  <body>
    <main>
      <h1>groundray</h1>
      <p role="status">{problem}</p>
      <form method="post">
        <label for="token">Token of this service</label>
        <input id="token" name="token" type="password" autocomplete="current-password" required autofocus />
        <button>Open</button>
      </form>
    </main>
  </body>
</html>
"""
