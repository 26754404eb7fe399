"""A node's metrics are asked for directly, and a node that does not answer has none."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from groundray.runtime.serve import metrics


class Node(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_a_node_is_not_asked_through_a_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), Node) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        node = {"NodeManagerAddress": "127.0.0.1", "MetricsExportPort": server.server_address[1]}
        assert metrics._exported(node) == "/metrics"
        server.shutdown()
        thread.join()
    assert metrics._exported(node) == ""
