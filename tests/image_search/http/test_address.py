"""Where a service listens: host and port are checked, and shown as a URL that works."""

from __future__ import annotations

import socket

import pytest

from groundray.image_search.http.address import is_loopback, listen_address, url


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_port_out_of_range_is_named(port: int) -> None:
    with pytest.raises(ValueError, match=f"^--port: expected 0 to 65535, got {port}$"):
        listen_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["nosuchhost.invalid", "a..b", "203.0.113.9", "x" * 300])
def test_host_that_is_not_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(ValueError, match=r"^--host: expected an address"):
        listen_address(host, 8000)


def test_port_of_another_program_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^--port: expected a free port on 127\.0\.0\.1, got {port} "):
            listen_address("127.0.0.1", port)
        with pytest.raises(ValueError, match=r"^--port: expected a free port on 0\.0\.0\.0"):
            listen_address("0.0.0.0", port)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        *(("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True)),
        *(("0.0.0.0", False), ("::", False), ("", False), ("203.0.113.9", False), ("nosuchhost.invalid", False)),
    ],
)
def test_loopback_is_reached_from_this_machine_alone(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_port_0_becomes_a_free_one(host: str) -> None:
    address, port = listen_address(host, 0)
    assert address == ("0.0.0.0" if host == "0.0.0.0" else "127.0.0.1")
    assert listen_address(address, port) == (address, port)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("search", "http://search:80"),
    ],
)
def test_url_of_an_address(address: str, shown: str) -> None:
    assert url(address, 80) == shown


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_loopback() -> None:
    assert listen_address("::1", 0)[0] == "::1"
