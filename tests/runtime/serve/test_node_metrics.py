"""A node's metrics are asked for directly, and a node that does not answer has none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from groundray.runtime.serve import metrics


class Node(BaseHTTPRequestHandler):
    promised: int | None = None  # bytes

    def do_GET(self) -> None:
        self.send_response(200)
        if self.promised:
            self.send_header("Content-Length", str(self.promised))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[dict[str, Any]]:
    """Serve a node, as Ray describes it, inside the context."""
    with HTTPServer(("127.0.0.1", 0), Node) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": server.server_address[1]}
        finally:
            server.shutdown()
            thread.join()


def test_a_node_that_ends_in_the_middle_of_its_answer_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "promised", 1000)
    with serving() as node:
        assert metrics._exported(node) == ""


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_node_is_not_asked_through_a_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving() as node:
        assert metrics._exported(node) == "/metrics"
    assert metrics._exported(node) == ""
