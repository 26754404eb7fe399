"""A proxy on loopback that delays what clients send, as a distant store does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit


@contextlib.contextmanager
def delayed(endpoint: str, seconds: float) -> Iterator[str]:
    """Yield the URL of a server that takes `seconds` longer to answer a request than the one at `endpoint`."""
    place = urlsplit(endpoint)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def forward(source: socket.socket, target: socket.socket, wait: float) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(2**16):
                time.sleep(wait)
                target.sendall(content)
        for side in (source, target):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((place.hostname, place.port))
                for source, target, wait in ((client, server, seconds), (server, client, 0.0)):
                    threading.Thread(target=forward, args=(source, target, wait), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
