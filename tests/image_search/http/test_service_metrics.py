"""What Prometheus is shown: refused requests by reason, waits, the pool, and one page of all nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from search_fixtures import TOKEN

from groundray.image_search.http.app import create_app
from groundray.image_search.http.metrics import CountRefusals, merge_expositions
from groundray.image_search.http.rate_limit import TokenBuckets
from groundray.image_search.service import Service

ONE = """# HELP ray_serve_seconds seconds of a request
# TYPE ray_serve_seconds histogram
ray_serve_seconds_bucket{le="1",route="/search"} 3.0
ray_serve_seconds_count{route="/search"} 3.0
# HELP ray_node_memory bytes
# TYPE ray_node_memory gauge
ray_node_memory 5
# HELP ray_groundray_search_images images
# TYPE ray_groundray_search_images gauge
ray_groundray_search_images{model="demo",replica="a"} 20
"""
OTHER = """# HELP ray_groundray_search_images images
# TYPE ray_groundray_search_images gauge
ray_groundray_search_images{model="demo",replica="b"} 20

# HELP ray_serve_seconds seconds of a request
# TYPE ray_serve_seconds histogram
ray_serve_seconds_bucket{le="1",route="/pool"} 4.0
ray_serve_seconds_count{route="/pool"} 4.0
"""


class Recorded:
    """Metrics that a test reads."""

    def __init__(self) -> None:
        self.pools: list[tuple[str, int]] = []
        self.waits: list[tuple[str, float]] = []

    def show_pool(self, model: str, images: int) -> None:
        self.pools.append((model, images))

    def observe_wait(self, thread: str, seconds: float) -> None:
        self.waits.append((thread, seconds))

    def exposition(self) -> str:
        return ONE


def test_pages_of_several_nodes_become_one() -> None:
    merged = merge_expositions([ONE, "", OTHER], ("ray_serve_", "ray_groundray_search_"))
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    apart = [family for page in (ONE, OTHER) for family in text_string_to_metric_families(page)]
    assert list(families) == ["ray_serve_seconds", "ray_groundray_search_images"]
    for name, family in families.items():
        assert family.samples == [sample for one in apart if one.name == name for sample in one.samples]
        assert family.type == next(one.type for one in apart if one.name == name)
        assert merged.count(f"# TYPE {name} ") == merged.count(f"# HELP {name} ") == 1
    assert merge_expositions([], ("ray_",)) == ""


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def counts() -> Counter[str]:
    return Counter()


@pytest.fixture
def client(service: Service, tmp_path: Path, recorded: Recorded, counts: Counter[str]) -> TestClient:
    app = create_app(service, page=tmp_path, token=TOKEN, buckets=TokenBuckets(0.6), metrics=recorded)
    app.add_middleware(CountRefusals, count=lambda reason: counts.update([reason]))
    return TestClient(app, "http://localhost")


def test_refused_requests_are_counted_by_reason(client: TestClient, counts: Counter[str]) -> None:
    known = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/pool").status_code == 401
    assert client.get("/pool", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/search", headers={**known, "origin": "null"}).status_code == 403
    assert client.get("/search", headers=known).status_code == 422
    assert client.get("/thumbnails/nobody", headers=known).status_code == 404
    assert client.post("/search", content=b"x", headers={**known, "content-length": str(10**9)}).status_code == 413
    assert client.get("/pool", headers=known).status_code == 200
    assert client.get("/healthz").status_code == 200
    assert counts == {"token": 1, "host": 1, "origin": 1, "invalid": 1, "unknown": 1, "size": 1}
    while client.get("/pool", headers=known).status_code == 200:
        pass
    assert counts["rate"] == 1


def test_metrics_are_behind_the_token(client: TestClient) -> None:
    assert client.get("/metrics").status_code == 401
    response = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (response.text, response.headers["cache-control"]) == (ONE, "no-store")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_pool_and_the_waits_are_recorded(service: Service, recorded: Recorded, client: TestClient) -> None:
    assert recorded.pools == [("demo", 20)]
    picture = service.search.index.pictures[6]
    known = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/search", files={"file": ("mine.jpg", picture)}, headers=known).status_code == 200
    assert [thread for thread, _ in recorded.waits] == ["decode", "compute"]
    assert all(0 <= seconds < 60 for _, seconds in recorded.waits)


def test_without_metrics_there_is_no_page_of_them(service: Service, tmp_path: Path) -> None:
    assert TestClient(create_app(service, page=tmp_path), "http://localhost").get("/metrics").status_code == 404
