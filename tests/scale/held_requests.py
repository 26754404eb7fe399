"""A proxy on loopback before an object store, which holds requests back until a number of them wait."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

METHODS = (b"GET", b"HEAD", b"PUT", b"POST", b"DELETE")
HOLD_SECONDS = 60.0  # after which requests pass although too few wait


@dataclass
class Proxy:
    """The requests that have passed.

    Attributes:
        endpoint: URL of the proxy.
        methods: of each request.
        most: greatest number of requests that waited at the same time.
        delay: seconds that each request waits, where it is not held.
    """

    endpoint: str
    methods: list[str] = field(default_factory=list)
    most: int = 0
    delay: float = 0.0
    _waiting: int = 0
    _expected: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def hold(self, expected: int) -> None:
        """Hold the next requests back until `expected` of them wait."""
        with self._changed:
            self.methods.clear()
            self.most, self._expected = 0, expected

    def passes(self, method: str) -> None:
        """Wait as a request has to."""
        time.sleep(self.delay)
        with self._changed:
            self.methods.append(method)
            self._waiting += 1
            self.most = max(self.most, self._waiting)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most >= self._expected, HOLD_SECONDS)
            self._waiting -= 1


@contextlib.contextmanager
def proxy(endpoint: str) -> Iterator[Proxy]:
    """Yield a proxy before the server at a URL."""
    server = urlsplit(endpoint)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        found = Proxy(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread = threading.Thread(target=_accept, args=(listening, (server.hostname, server.port), found), daemon=True)
        thread.start()
        yield found
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def _accept(listening: socket.socket, server: tuple[str, int], found: Proxy) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        upstream = socket.create_connection(server)
        threading.Thread(target=_pump, args=(client, upstream, found), daemon=True).start()
        threading.Thread(target=_pump, args=(upstream, client, None), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, found: Proxy | None) -> None:
    """Pass bytes on until the connection ends; requests wait first."""
    with contextlib.suppress(OSError):
        while content := source.recv(2**16):
            method = content.partition(b" ")[0]
            if found and method in METHODS:
                found.passes(method.decode())
            sink.sendall(content)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
