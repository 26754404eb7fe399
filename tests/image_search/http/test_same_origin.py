"""Requests that another web site caused are refused; browsers are told what they may do with responses."""

from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from groundray.image_search.http.same_origin import SECURITY_HEADERS, SameOrigin, SecurityHeaders, check_hosts

HOSTS = ("search.example.org", "*.pool.example.org")


def client(hosts: tuple[str, ...] = HOSTS) -> TestClient:
    app = FastAPI()
    app.add_middleware(SameOrigin, hosts=hosts)
    app.add_middleware(SecurityHeaders)
    app.get("/")(lambda: "read")
    app.post("/")(lambda: "computed")
    return TestClient(app, "http://localhost")


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "a.localhost:80", "127.0.0.1:8000", "[::1]", "[::1]:8765"),
        *("192.0.2.7:8000", "[2001:db8::7]:8000"),  # no site can make a browser send an address
        *("search.example.org", "search.example.org:443", "Search.Example.org.", "a.pool.example.org"),
    ],
)
def test_known_host_is_answered(host: str) -> None:
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("pool.example.org", "xsearch.example.org", "a.search.example.org", "", "localhost:x", "a@localhost"),
        *("localhost/evil.example", "[::1", "2130706433", "0x7f000001"),
    ],
)
def test_unknown_host_is_400(host: str) -> None:
    response = client().get("/", headers={"host": host})
    assert response.status_code == 400
    assert "--allow-host" in response.json()["detail"]


def test_star_allows_every_host() -> None:
    assert client(("*",)).get("/", headers={"host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # a program
        ({"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site", "origin": "https://evil.example"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, 403),
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "https://localhost:8000"}, 200),  # a proxy in front has TLS
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
    ],
)
def test_only_pages_of_the_service_and_programs_may_post(headers: dict[str, str], status: int) -> None:
    headers = {"host": "localhost:8000", **headers}
    assert client().post("/", headers=headers).status_code == status
    assert client().get("/", headers=headers).status_code == 200


def test_every_response_has_the_security_headers() -> None:
    for response in (
        client().get("/"),
        client().get("/nothing"),
        client().get("/", headers={"host": "evil.example"}),
        client().post("/", headers={"origin": "null"}),
    ):
        assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "frame-ancestors 'none'" in SECURITY_HEADERS["Content-Security-Policy"]
    assert SECURITY_HEADERS["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("host", ["http://a.org", "a.org:80", "a.org/", "", "*a.org", "a.*.org", "*.", "a b"])
def test_a_pattern_that_is_no_host_is_an_error(host: str) -> None:
    with pytest.raises(ValueError, match="--allow-host: expected"):
        check_hosts(["fine.example.org", "*.example.org", "*", host])
