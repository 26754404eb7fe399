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

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((place.hostname, place.port)) as server:
            answers = threading.Thread(target=forward, args=(server, client, 0.0), daemon=True)
            answers.start()
            forward(client, server, seconds)
            answers.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
