"""The service's measurements as metrics of Ray, which each node of a cluster exports for Prometheus.

Ray Serve itself measures requests by route (`ray_serve_http_request_latency_ms` and others), queues and batches. These
are added to its own, and bear the replica.
"""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import ray
from ray import serve
from ray.util.metrics import Counter, Gauge, Histogram

from groundray.image_search.http.metrics import merge_expositions

PREFIXES = (  # of what the page shows; the rest of Serve's is about its controller
    "ray_groundray_search_",
    *(f"ray_serve_{of}" for of in ("http_", "num_http_", "num_ongoing_http_", "deployment_", "replica_", "batch")),
)
WAIT_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
NODE_SECONDS = 3.0  # for a node to tell its metrics
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not reach a cluster's nodes
SILENT = "ray_groundray_search_silent_nodes"  # whose metrics are missing from the page


class RayMetrics:
    """The metrics of a replica."""

    def __init__(self) -> None:
        self._model = ""
        replica = {"replica": serve.get_replica_context().replica_id.unique_id}
        self._images = Gauge("groundray_search_images", "images in the pool, by model", ("model", "replica"))
        self._wait = Histogram(
            "groundray_search_wait_seconds",
            "seconds that work waits for the thread that computes, or for the one that decodes pictures",
            [*WAIT_SECONDS],
            ("thread", "replica"),
        )
        self._images.set_default_tags(replica)
        self._wait.set_default_tags(replica)

    def show_pool(self, model: str, images: int) -> None:
        shown = model.encode("ascii", "backslashreplace").decode()
        if self._model not in ("", shown):  # Ray would go on to export the last value of a model that was replaced
            self._images.set(0, {"model": self._model})
        self._images.set(images, {"model": shown})
        self._model = shown

    def observe_wait(self, thread: str, seconds: float) -> None:
        self._wait.observe(seconds, {"thread": thread})

    def exposition(self) -> str:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        with ThreadPoolExecutor(min(32, len(nodes))) as readers:
            pages = list(readers.map(_exported, nodes))
        return f"{merge_expositions(pages, PREFIXES)}{SILENT} {pages.count('')}\n"


def refusals() -> Counter:
    """Return the counter of refused requests of a proxy."""
    return Counter("groundray_search_refused", "requests that were refused, by reason", ("reason",))


def _exported(node: dict[str, Any]) -> str:
    """Return what a node exports; nothing if it does not answer."""
    host = node["NodeManagerAddress"]
    address = f"[{host}]" if ":" in host else host
    try:
        with DIRECT.open(f"http://{address}:{node['MetricsExportPort']}/metrics", timeout=NODE_SECONDS) as page:
            return page.read().decode(errors="replace")
    except (OSError, HTTPException):  # the latter if its process ends in the middle of the answer
        return ""
