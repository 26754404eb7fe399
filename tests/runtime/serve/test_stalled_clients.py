"""Clients that stall in the middle of an upload do not keep others from being answered.

pytest tests/runtime/serve/test_stalled_clients.py -m slow -s      # 200 clients, 110 of them stalled, for 60 s
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from PIL import Image
from ray import serve
from search_fixtures import SearchPaths

from groundray.image_search.upload_limits import MAX_BYTES
from groundray.runtime.serve import deployment
from groundray.runtime.serve.deployment import Arguments

pytestmark = pytest.mark.thorough  # waits for clients that stall

BOUNDARY = b"boundary"
LARGE = 300_000_000  # bytes of an upload that no one needs


@dataclass
class Record:
    """What a group of clients got: seconds until each answer, when it came, and its status; 0 is a lost connection."""

    seconds: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def add(self, status: int, started: float) -> None:
        self.statuses[status] += 1
        self.seconds.append(time.monotonic() - started)
        self.times.append(time.monotonic())

    @property
    def longest_gap(self) -> float:
        """Longest time in seconds in which no one was answered."""
        return float(np.diff(np.sort(self.times)).max())

    def __str__(self) -> str:
        percentiles = np.percentile(self.seconds, [50, 90, 99, 100]) if self.seconds else []
        shown = ", ".join(
            f"{name} {1000 * value:.0f} ms"
            for name, value in zip(("median", "p90", "p99", "max"), percentiles, strict=False)
        )
        return f"{dict(self.statuses)}  {shown}"


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (112, 112), "red").save(file, "JPEG")
    return file.getvalue()


def upload(content: bytes) -> bytes:
    """A form with a picture, as a browser sends it."""
    head = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="mine.jpg"\r\n\r\n' % BOUNDARY
    return head + content + b"\r\n--%b--\r\n" % BOUNDARY


def request(method: bytes, path: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    kind = b"Content-Type: multipart/form-data; boundary=%b\r\nContent-Length: %d\r\n" % (BOUNDARY, length or len(body))
    return b"%b %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n%b" % (method, path, kind if method == b"POST" else b"", body)


REQUESTS = [
    request(b"GET", b"/healthz"),
    request(b"GET", b"/search?text=red&k=5"),
    request(b"GET", b"/pool?k=5"),
    request(b"POST", b"/search", upload(picture())),
]


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: bytes) -> int:
    """Send a request and return the status of its answer, after reading it whole."""
    writer.write(sent)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if lengths:
        await reader.readexactly(int(lengths[0].split(b":")[1]))
    else:
        while (size := int(await reader.readline(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    return int(head.split(b" ", 2)[1])


async def client(port: int, until: float, record: Record, requests: list[bytes], pause: float) -> None:
    """Send the requests in turn, each on the same connection as long as it is open."""
    number, connection = 0, None
    while time.monotonic() < until:
        started = time.monotonic()
        try:
            connection = connection or await asyncio.open_connection("127.0.0.1", port)
            status = await asyncio.wait_for(exchange(*connection, requests[number % len(requests)]), 60)
        except (OSError, EOFError, TimeoutError):
            status = 0
        record.add(status, started)
        if connection and status not in (200, 422):
            connection[1].close()
            connection = None
        number += 1
        await asyncio.sleep(pause)
    if connection:
        connection[1].close()


async def put_under_load(port: int, honest: int, stalled: int, seconds: float, pause: float) -> tuple[Record, Record]:
    """Return what the honest and what the stalled clients got in so many seconds.

    Args:
        pause: seconds between an answer and the next request of an honest client.
    """
    until, good, bad = time.monotonic() + seconds, Record(), Record()
    stalls = [request(b"POST", b"/search", b"--bo", length=100_000)]
    clients = [client(port, until, bad, stalls, 0) for _ in range(stalled)]
    clients += [
        client(port, until, good, REQUESTS[number % 4 :] + REQUESTS[: number % 4], pause) for number in range(honest)
    ]
    await asyncio.gather(*clients)
    return good, bad


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def most_proxy_bytes() -> int:
    """Return the most memory that the proxy has had so far, in bytes."""
    (proxy,) = (process for process in psutil.Process().children(recursive=True) if "ProxyActor" in process.name())
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{proxy.pid}/status").read_text())
    return 1024 * int(line)


def send_large(port: int) -> int:
    """Send LARGE bytes as an upload of unknown length, and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        block = b"%x\r\n%b\r\n" % (1_000_000, bytes(1_000_000))
        try:
            for _ in range(LARGE // 1_000_000):
                connection.sendall(block)
            connection.sendall(b"0\r\n\r\n")
        except ConnectionError:
            pass  # it was cut off, with the answer sent
        return int(connection.recv(1000).split(b" ", 2)[1])


def arguments(place: SearchPaths) -> Arguments:
    return Arguments(checkpoint=place.checkpoint, images=place.images, index=place.index, norms=place.norms)


@pytest.fixture
def no_serve(ray_cluster: None) -> Iterator[None]:
    """The session's cluster without Serve, which another test may have left running with a timeout of its own."""
    serve.shutdown()
    yield
    serve.shutdown()


@contextlib.contextmanager
def serving(place: SearchPaths, timeout: float) -> Iterator[int]:
    """Serve search inside the context, with a limit of seconds for a request; yields its port."""
    with deployment.serving(arguments(place), "127.0.0.1", free_port(), timeout=timeout) as address:
        port = urlsplit(address).port
        assert port is not None
        yield port


@pytest.mark.ray
@pytest.mark.usefixtures("no_serve")
def test_stalled_and_large_uploads_keep_no_one_out(place: SearchPaths) -> None:
    """110 stalled uploads would fill the replica and its queue; while they do, 300 MB would fill the proxy."""
    with serving(place, timeout=4) as port:
        good, bad = asyncio.run(put_under_load(port, honest=10, stalled=110, seconds=8, pause=0.5))
        print(f"\nhonest   {good}\nstalled  {bad}")
        assert set(good.statuses) == {200}
        assert bad.statuses[408] >= 110
        assert set(bad.statuses) == {408}

        before = most_proxy_bytes()
        assert send_large(port) == 413
        assert most_proxy_bytes() - before < 3 * MAX_BYTES


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("no_serve")
def test_200_clients_110_of_them_stalled_for_a_minute(place: SearchPaths) -> None:
    with serving(place, timeout=20) as port:
        good, bad = asyncio.run(put_under_load(port, honest=90, stalled=110, seconds=60, pause=4))
        print(f"\nhonest   {good}  longest time without an answer {good.longest_gap:.2f} s\nstalled  {bad}")
        assert set(good.statuses) == {200}
        assert good.longest_gap < 5
        assert set(bad.statuses) == {408}
