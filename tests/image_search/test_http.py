"""The HTTP interface: every answer, and every request that cannot be answered."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import tracemalloc
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from PIL import Image
from search_fixtures import TOKEN, Trap

from groundray.data.image_decoder import UnusableImage
from groundray.image_search import query
from groundray.image_search.calibration import explain
from groundray.image_search.errors import BadQuery
from groundray.image_search.http.app import create_app
from groundray.image_search.http.page_files import plotly_script
from groundray.image_search.http.pool_routes import for_browser, page_of
from groundray.image_search.http.rate_limit import TokenBuckets
from groundray.image_search.image_ids import ImageIds
from groundray.image_search.knn import ExactSearch
from groundray.image_search.query import Query
from groundray.image_search.service import Service

URL = "http://localhost"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<title>a page</title>")
    (tmp_path / "look.js").write_text("export const look = 1")
    return tmp_path


@pytest.fixture
def client(service: Service, page: Path) -> Iterator[TestClient]:
    with TestClient(create_app(service, page=page), URL, raise_server_exceptions=False) as client:
        yield client


def ids(answer: dict[str, Any]) -> list[str]:
    return [result["id"] for result in answer["results"]]


def detail(response: Response, status: int) -> str:
    """Return the message of an error response, which must not contain a traceback."""
    assert response.status_code == status, response.text
    told = response.json()
    assert list(told) == ["detail"]
    assert "Traceback" not in told["detail"]
    assert "File " not in told["detail"]
    return told["detail"]


def test_healthz_reports_what_is_served(client: TestClient, service: Service) -> None:
    assert client.get("/healthz").json() == {
        "status": "ok",
        "images": 20,
        "words": 74,
        "model": "demo",
        "stages": ["grounding", "relational", "retrieval"],
        "kind": "groundray",
        "recall": 1.0,
        "index": service.search.index.folder.name,
        "update": "",
    }


def test_search_equals_the_python_api(client: TestClient, service: Service) -> None:
    search = service.search
    (answer,) = (found := client.get("/search", params={"text": " blue star ", "k": 5}).json())["answers"]
    assert found["query"] == {"text": ["blue star"], "without": "", "image": None, "uploaded": False}
    assert found["milliseconds"] > 0
    assert answer["alpha"] == 1
    for result, hit in zip(answer["results"], search.find("blue star", k=5), strict=True):
        assert result.pop("match") == hit.match is None
        assert result == {"id": hit.id, "score": pytest.approx(hit.score, abs=1e-6), "width": 112, "height": 112}

    params = {"text": "red", "image": "80", "alpha": [0, 0.5, 1], "k": 20}
    answers = client.get("/search", params=params).json()["answers"]  # type: ignore[arg-type]
    assert [answer["alpha"] for answer in answers] == [0, 0.5, 1]
    assert ids(answers[0]) == [hit.id for hit in search.find(image="80", k=20)]
    assert ids(answers[1]) == [hit.id for hit in search.find("red", "80", k=20)]
    assert ids(answers[2]) == [hit.id for hit in search.find("red", k=20)]
    several = {"text": ["star", " blue "], "without": " red ", "k": 7}
    found = client.get("/search", params=several).json()  # type: ignore[arg-type]
    assert found["query"] == {"text": ["star", "blue"], "without": "red", "image": None, "uploaded": False}
    assert ids(found["answers"][0]) == [hit.id for hit in search.find(("star", "blue"), k=7, without="red")]
    (default,) = client.get("/search", params={"text": "red", "image": "80"}).json()["answers"]
    assert default["alpha"] == 0.5
    assert len(default["results"]) == 20  # of 24, the default, as many as there are


def test_search_by_an_uploaded_picture(client: TestClient, service: Service) -> None:
    picture = service.search.index.pictures[6]
    found = client.post("/search", files={"file": ("mine.jpg", picture)}, data={"alpha": ["0", "1"], "k": "2"}).json()
    assert found["query"] == {"text": [], "without": "", "image": None, "uploaded": True}
    assert [answer["alpha"] for answer in found["answers"]] == [0]
    assert ids(found["answers"][0])[0] == service.search.index.ids[6]
    mixed = client.post("/search", files={"file": ("mine.jpg", picture)}, data={"text": "red", "alpha": ["0", ".5"]})
    assert [answer["alpha"] for answer in mixed.json()["answers"]] == [0, 0.5]
    by_id = client.post("/search", data={"text": "red", "image": "80"}).json()
    assert by_id["answers"] == client.get("/search", params={"text": "red", "image": "80"}).json()["answers"]
    nothing_chosen = client.post("/search", files={"file": ("", b"")}, data={"text": "red", "image": ""})
    assert nothing_chosen.json()["query"] == {"text": ["red"], "without": "", "image": None, "uploaded": False}


def test_match_map_equals_the_python_api(client: TestClient, service: Service) -> None:
    assert service.matcher is not None
    row = service.search.index.row("80")
    match = service.matcher.match("a blue star", service.matcher.decode(service.search.index.pictures[row]))
    found = client.get("/match-map", params={"text": "a blue star", "image": "80"}).json()
    assert (found["rows"], found["columns"], found["crop"]) == (7, 7, [0, 0, 1, 1])
    assert found["similarity"] == pytest.approx(match.similarity, abs=1e-6)
    assert found["mean"] == pytest.approx(np.mean([word.score for word in match.words]), abs=1e-6)
    assert service.calibration is not None
    assert found["scale"] == {"low": service.calibration.low, "high": service.calibration.high}
    picture = service.matcher.decode(service.search.index.pictures[row])
    _, told = explain(service.matcher, service.calibration, "a blue star", picture)
    assert [{name: token[name] for name in vars(told[0])} for token in found["tokens"]] == [vars(one) for one in told]
    for token, word in zip(found["tokens"], match.words, strict=True):
        assert (token["text"], token["start"], token["end"]) == (word.text, word.start, word.end)
        assert token["peak"] == list(word.peak)
        np.testing.assert_allclose(token["map"], word.map, atol=1e-4)
    upload = {"file": ("mine.jpg", service.search.index.pictures[row])}
    assert client.post("/match-map", files=upload, data={"text": "a blue star"}).json() == found


def test_words_and_the_place_of_a_phrase(client: TestClient, service: Service) -> None:
    found = client.get("/words", params={"axes": 2}).json()
    assert found["models"] == ["ungrounded", "grounded"]
    assert [axes["model"] for axes in found["axes"]] == found["models"]
    assert len(found["words"]) == 74
    assert found["left_out"] == 0
    circle = next(word for word in found["words"] if word["text"] == "circle")
    assert (circle["category"], circle["concreteness"]) == ("shape", 5.0)
    place = [word.text for word in service.space.words.shown].index("circle")
    np.testing.assert_allclose(circle["at"]["grounded"], service.space.models["grounded"].at[place, :2], atol=1e-4)

    landed = client.get("/words", params={"text": "striped circle", "k": 4}).json()
    expected = service.space.place("striped circle", axes=3, k=4)
    for name, landing in expected.items():
        assert landed["at"][name] == pytest.approx(landing.at)
        assert [near["text"] for near in landed["neighbours"][name]] == [near.text for near in landing.neighbours]


def test_pool_sample_is_fixed_by_the_seed(client: TestClient) -> None:
    first, again, other = (client.get("/pool", params={"k": 8, "seed": seed}).json()["results"] for seed in (0, 0, 1))
    assert first == again != other
    assert len({image["id"] for image in first}) == 8
    assert len(client.get("/pool").json()["results"]) == 20


def test_a_page_of_the_pool_takes_no_time_for_the_pool() -> None:
    """A page of 10^18 rows: a permutation would not fit in any memory."""
    for count in (10_001, 5_000_000, 10**18):
        rows = page_of(count, query.MAX_RESULTS, 3)
        assert len(set(rows)) == query.MAX_RESULTS
        assert rows == page_of(count, query.MAX_RESULTS, 3) != sorted(rows)
        assert rows[50:70] == page_of(count, 20, 3, 50)
        assert 0 <= min(rows) <= max(rows) < count
    counts = np.bincount(np.ravel([page_of(30, 3, seed) for seed in range(3000)]), minlength=30)
    assert abs(counts - 300).max() < 5 * 300**0.5


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20, 64, 65, 1000])
def test_pages_of_the_pool_have_every_image_once(count: int) -> None:
    rows = [row for offset in range(0, count + 7, 7) for row in page_of(count, 7, 5, offset)]
    assert sorted(rows) == [*range(count)]
    assert count < 20 or rows != page_of(count, count, 6)


def test_the_pool_is_paged_by_next(client: TestClient, service: Service) -> None:
    found, offset, pages = [], 0, 0
    while offset is not None:
        page = client.get("/pool", params={"k": 8, "seed": 1, "offset": offset}).json()
        assert page["total"] == 20
        found, offset, pages = [*found, *ids(page)], page["next"], pages + 1
    assert (pages, sorted(found)) == (3, sorted(service.search.index.ids))
    some = client.get("/pool", params={"filter": "id=7*"}).json()
    assert sorted(ids(some)) == [str(id) for id in range(72, 80)]
    assert (some["total"], some["next"]) == (8, None)
    assert client.get("/labels").json() == {"labels": []}


def test_nothing_reads_the_whole_pool(service: Service, page: Path) -> None:
    """The ids and sizes are only read by row."""

    class ByRow:
        def __init__(self, values: Any):
            self.values, self.row = values, getattr(values, "row", None)
            self.read = 0

        def __len__(self) -> int:
            return len(self.values)

        def __getitem__(self, rows: Any) -> Any:
            self.read += len(rows) if isinstance(rows, list) else 1
            return self.values[rows]

        def __iter__(self) -> Any:
            raise AssertionError("all of the pool is read")

    index = copy(service.search.index)
    index.ids, index.sizes = ByRow(index.ids), ByRow(index.sizes)  # type: ignore[assignment]
    watched = replace(service, search=replace(service.search, index=index))
    with TestClient(create_app(watched, page=page), URL) as client:
        for path in (
            "/healthz",
            "/pool?k=3",
            "/search?text=red&k=3",
            "/search?image=80&k=3",
            "/thumbnails/80",
            "/words",
        ):
            index.ids.read = index.sizes.read = 0  # type: ignore[attr-defined]
            assert client.get(path).status_code == 200
            assert max(index.ids.read, index.sizes.read) <= 3  # type: ignore[attr-defined]


def test_a_pool_of_a_million_is_paged_in_bounded_memory(service: Service, page: Path) -> None:
    """A page takes no more for a million images than for twenty: their ids are not made into strings."""
    count, search = 1_000_000, service.search
    index = copy(search.index)
    index.ids = ImageIds.of(pa.chunked_array([pc.cast(pa.array(np.arange(count)), pa.string())]))
    index.sizes = np.broadcast_to(np.array([640, 480], np.int32), (count, 2))
    index.vectors = np.tile(np.asarray(search.index.vectors), (count // 20, 1))
    large = replace(service, search=replace(search, index=index, nearest=ExactSearch(index.vectors)))
    with TestClient(create_app(large, page=page), URL) as client:
        client.get("/search", params={"text": "red"})
        tracemalloc.start()
        pages = [
            client.get(path, params=params).json()
            for path, params in (
                ("/pool", {"k": 200, "seed": 3}),
                ("/pool", {"k": 200, "seed": 3, "offset": 999_900}),
                ("/search", {"text": "red", "k": 200, "offset": 9_800}),
            )
        ]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert [len(ids(page)) for page in (*pages[:2], pages[2]["answers"][0])] == [200, 100, 200]
    assert (pages[0]["total"], pages[0]["next"], pages[1]["next"]) == (count, 200, None)
    assert most < 40_000_000  # a million strings would take 57 MB


def test_pictures_are_revalidated_by_etag(client: TestClient, service: Service) -> None:
    for path, column in (("thumbnails", service.search.index.thumbnails), ("images", service.search.index.pictures)):
        response = client.get(f"/{path}/80")
        assert response.headers["content-type"] == "image/jpeg"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.content == column[service.search.index.row("80")]
        assert response.headers["cache-control"] == "private, no-cache"
        again = client.get(f"/{path}/80", headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(f"/{path}/81", headers={"If-None-Match": response.headers["etag"]}).status_code == 200


def test_pictures_of_a_version_of_the_pool_are_kept_for_good(service: Service) -> None:
    client = TestClient(create_app(service), URL)
    (version,) = re.findall(r'<meta name="pool" content="(.+)" />', client.get("/").text)
    for path in ("thumbnails", "images"):
        for given, kept in ((version, "private, max-age=31536000, immutable"), ("other", "private, no-cache")):
            response = client.get(f"/{path}/80", params={"v": given})
            assert response.headers["cache-control"] == kept
            again = client.get(f"/{path}/80", params={"v": given}, headers={"If-None-Match": response.headers["etag"]})
            assert (again.status_code, again.headers["cache-control"]) == (304, kept)


def test_ids_may_be_paths(service: Service, page: Path) -> None:
    """As those of an image folder are."""
    index = service.search.index
    renamed = copy(index)
    renamed.ids = ImageIds.of(pa.chunked_array([[*index.ids[:3], "dog/1 a.jpg", *index.ids[4:]]]))
    client = TestClient(create_app(replace(service, search=replace(service.search, index=renamed)), page=page), URL)
    for id in ("dog/1%20a.jpg", "dog%2F1%20a.jpg"):
        assert client.get(f"/thumbnails/{id}").content == index.thumbnails[3]


def test_other_formats_become_jpeg() -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 5)).save(file, "TIFF")
    content, kind = for_browser(file.getvalue())
    assert (Image.open(io.BytesIO(content)).format, kind) == ("JPEG", "image/jpeg")


def test_the_page_and_its_files_are_served(client: TestClient) -> None:
    assert "a page" in client.get("/").text
    assert client.get("/static/look.js").headers["content-type"].startswith("text/javascript")
    script = client.get("/static/plotly.min.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert len(script.content) == plotly_script().stat().st_size > 1_000_000
    for path in ("/static/../service.py", "/static/%2e%2e/service.py", "/static/nothing.js", "/docs"):
        assert client.get(path).status_code == 404


def test_answers_are_compressed_and_pictures_are_not(client: TestClient) -> None:
    for path in ("/search?text=red", "/words", "/openapi.json"):
        response = client.get(path, headers={"Accept-Encoding": "gzip"})
        assert (response.headers["content-encoding"], response.headers["vary"]) == ("gzip", "Accept-Encoding")
        assert int(response.headers["content-length"]) < len(response.content)
        plain = client.get(path, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.json().keys() == response.json().keys()
    for path in ("/thumbnails/80", "/images/80", "/healthz"):
        assert "content-encoding" not in client.get(path, headers={"Accept-Encoding": "gzip"}).headers


def test_no_cache_keeps_an_answer(client: TestClient) -> None:
    for path in ("/search?text=red", "/words", "/pool", "/healthz", "/search", "/thumbnails/nobody", "/nothing"):
        assert client.get(path).headers["cache-control"] == "no-store"
    assert client.get("/").headers["cache-control"] == "no-cache"


def test_all_of_the_service_is_behind_the_token(service: Service, page: Path) -> None:
    app = create_app(service, page=page, token=TOKEN)
    client = TestClient(app, URL, follow_redirects=False)
    picture = service.search.index.pictures[6]
    asked: list[tuple[str, str, dict[str, Any]]] = [
        *(("GET", path, {}) for path in ("/", "/static/look.js", "/thumbnails/80", "/images/80", "/openapi.json")),
        *(("GET", path, {}) for path in ("/search?text=red", "/match-map?text=red&image=80", "/words", "/pool")),
        *(("POST", path, {"files": {"file": ("mine.jpg", picture)}}) for path in ("/search", "/match-map?text=red")),
    ]
    for method, path, body in asked:
        assert "token" in detail(client.request(method, path, **body), 401)
    assert client.get("/healthz").status_code == 200
    headers = {"Authorization": f"Bearer {TOKEN}"}
    statuses = [client.request(method, path, headers=headers, **body).status_code for method, path, body in asked]
    assert statuses == [200] * 10 + [422]  # a form has the text as a field
    assert client.post("/", data={"token": TOKEN}, headers={"origin": "https://evil.example"}).status_code == 403
    assert client.post("/", data={"token": TOKEN}, headers={"origin": URL}).status_code == 303
    assert [client.request(method, path, **body).status_code for method, path, body in asked] == statuses  # the cookie
    with_more = client.get("/search?text=red&tokken=x", headers=headers)
    assert TOKEN not in with_more.text + str(with_more.headers)


def test_a_client_that_asks_too_often_gets_429(service: Service, page: Path) -> None:
    client = TestClient(create_app(service, page=page, token=TOKEN, buckets=TokenBuckets(0.2)), URL)
    statuses = [client.get("/pool").status_code for _ in range(4)]
    assert statuses == [401, 401, 429, 429]  # wrong tokens count
    response = client.get("/pool")
    assert 0 < int(response.headers["retry-after"]) <= 5
    assert "0.2 requests per second" in detail(response, 429)
    assert client.get("/healthz").status_code == 200


def test_openapi_describes_every_route(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    assert {
        "/healthz",
        "/search",
        "/match-map",
        "/words",
        "/pool",
        "/labels",
        "/thumbnails/{id}",
        "/images/{id}",
    } == set(told["paths"])
    for path in ("/search", "/match-map"):
        assert {"200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "503"} <= set(
            told["paths"][path]["post"]["responses"]
        )
        schema = told["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema["$ref"].rpartition("/")[2] in told["components"]["schemas"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/search", 422, "expected a text, an image, or both, got neither"),
        ("/search?text=%20", 422, "got neither"),
        ("/search?text=%E2%80%8B", 422, "which has no word"),
        (f"/search?text={'a' * 1001}", 422, "text.0: string should have at most 1000 characters"),
        ("/search?text=red" + "&text=blue" * 8, 422, "text: list should have at most 8 items"),
        ("/search?without=red", 422, "got neither"),
        ("/search?text=red&without=%E2%80%8B", 422, "which has no word"),
        ("/search?text=red&k=0", 422, "k: input should be greater than or equal to 1, got '0'"),
        ("/search?text=red&k=1000000000", 422, "k: input should be less than or equal to 200"),
        ("/search?text=red&k=many", 422, "k: input should be a valid integer"),
        ("/search?text=red&image=80&alpha=2", 422, "alpha: expected 0 (the image alone) to 1 (the text alone), got 2"),
        ("/search?text=red&alpha=nan", 422, "got nan"),
        ("/search?text=red&alpha=x", 422, "alpha.0: input should be a valid number"),
        ("/search?text=red" + "&alpha=0" * 102, 422, "alpha: list should have at most 101 items"),
        ("/search?txet=red", 422, "txet: extra inputs are not permitted"),
        ("/search?image=nobody", 404, "expected an id of one of the 20 images of the pool (such as '72')"),
        ("/match-map?image=80", 422, "text: field required"),
        ("/match-map?text=&image=80", 422, "text: string should have at least 1 character"),
        ("/match-map?text=%20&image=80", 422, "which has no word"),
        ("/match-map?text=red", 422, "expected an image beside the text"),
        ("/match-map?text=red&image=nobody", 404, "expected an id"),
        ("/words?axes=0", 422, "axes: input should be greater than or equal to 1"),
        ("/words?axes=11", 422, "axes: input should be less than or equal to 10"),
        ("/words?text=", 422, "expected a word or phrase that the model knows"),
        ("/words?text=%E6%BC%A2", 422, "expected a word or phrase that the model knows"),
        ("/pool?k=0", 422, "k: input should be"),
        ("/pool?seed=-1", 422, "seed: input should be"),
        ("/thumbnails/nobody", 404, "expected an id"),
        ("/images/../../etc/passwd", 404, ""),
        ("/nothing", 404, "Not Found"),
    ],
)
def test_invalid_requests_get_their_status(client: TestClient, path: str, status: int, message: str) -> None:
    assert message in detail(client.get(path), status)


def picture(*, size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("path", ["/search", "/match-map"])
@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"hello", 415, "expected a picture (JPEG, PNG, WEBP, GIF, BMP), got 5 bytes"),
        (b"", 415, "got 0 bytes"),
        (picture(size=(50, 50))[:-30], 422, "cannot be decoded"),
        (picture(size=(10_000, 6_000), mode="1"), 413, "at most 50,000,000 pixels, got 10,000 x 6,000"),
        (picture(size=(1, 20_001), mode="1"), 413, "at most 20,000 pixels a side, got 1 x 20,001"),
        (bytes(10_050_000), 413, "at most 10,000,000 bytes, got 10,050,000"),
        (bytes(10_200_000), 413, "got a request of 10,200,"),
    ],
    ids=["text", "empty", "truncated", "pixels", "side", "bytes", "request"],
)
def test_invalid_uploads_get_their_status(
    client: TestClient, path: str, content: bytes, status: int, message: str
) -> None:
    response = client.post(path, files={"file": ("mine.png", content)}, data={"text": "red"})
    assert message in detail(response, status)


def test_other_invalid_bodies_get_their_status(client: TestClient) -> None:
    both = client.post("/search", files={"file": ("mine.png", picture())}, data={"image": "80"})
    assert "got both" in detail(both, 422)
    assert "file: value error" in detail(client.post("/search", data={"file": "words"}), 422)
    assert "expected a form" in detail(client.post("/search", json={"text": "red"}), 422)
    broken = {"content-type": "multipart/form-data"}
    assert "boundary" in detail(client.post("/search", content=b"junk", headers=broken), 400)
    told_nothing = (b"x" * 100_000 for _ in range(110))  # no length is told: it is counted as it comes
    multipart = {"content-type": "multipart/form-data; boundary=b"}
    assert "10,000,000 bytes" in detail(client.post("/search", content=told_nothing, headers=multipart), 413)
    part = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nred\r\n'
    cut_off = part % b"text" + (part % b"without")[:-3]
    assert "cut off" in detail(client.post("/search", content=cut_off, headers=multipart), 422)
    assert client.post("/search", content=part % b"text" + b"--b--\r\n", headers=multipart).status_code == 200
    assert client.delete("/search").status_code == 405


def test_a_model_without_grounding_answers_409_to_match_map(service: Service, page: Path) -> None:
    client = TestClient(create_app(replace(service, matcher=None), page=page), URL)
    response = client.get("/match-map", params={"text": "red", "image": "80"})
    assert "grounding" in detail(response, 409)


def test_a_picture_that_takes_long_to_decode_holds_up_no_text(
    service: Service, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, release = threading.Event(), threading.Event()

    def slow(*_: Any) -> Any:
        decoding.set()
        assert release.wait(60)
        raise UnusableImage("truncated", "file: at last")

    monkeypatch.setattr(query, "model_input", slow)
    statuses: list[int] = []
    with TestClient(create_app(service, page=page), URL) as client:
        files = {"file": ("mine.png", picture())}
        upload = threading.Thread(target=lambda: statuses.append(client.post("/search", files=files).status_code))
        upload.start()
        assert decoding.wait(60)
        assert client.get("/search", params={"text": "red"}).status_code == 200
        assert client.get("/healthz").status_code == 200
        assert statuses == []
        release.set()
        upload.join()
    assert statuses == [422]


def test_an_internal_error_answers_500_without_details(
    service: Service, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("/secret/shard-00000.parquet is damaged")

    monkeypatch.setattr(type(service.search), "answer", fail)
    client = TestClient(create_app(service, page=page), URL, raise_server_exceptions=False)
    response = client.get("/search?text=red")
    assert "log" in detail(response, 500)
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


def test_requests_of_other_sites_are_refused(service: Service, page: Path) -> None:
    client = TestClient(create_app(service, page=page, hosts=["search.example.org"]), URL)
    assert client.get("/healthz", headers={"host": "search.example.org"}).status_code == 200
    assert "evil.example" in detail(client.get("/healthz", headers={"host": "evil.example"}), 400)
    files = {"file": ("mine.png", picture())}
    assert client.post("/search", files=files, headers={"origin": URL}).status_code == 200
    detail(client.post("/search", files=files, headers={"origin": "https://evil.example"}), 403)


def test_waiting_queries_are_answered_in_one_batch(service: Service, page: Path) -> None:
    """Bad ones among them do no harm to the others."""
    sizes: list[int] = []

    def together(answer: Any) -> Any:
        waiting: list[tuple[Any, asyncio.Future]] = []

        async def one(query: Any) -> Any:
            future = asyncio.get_running_loop().create_future()
            waiting.append((query, future))
            if len(waiting) == 3:
                sizes.append(len(waiting))
                for (_, of), found in zip(waiting, await answer([query for query, _ in waiting]), strict=True):
                    of.set_result(found)
            return await future

        return one

    texts = ("red", "a trap", "a star", "\u200b")
    found: dict[str, Response] = {}
    trap = Trap(service.search.towers, "a trap", BadQuery("text: a trap"))
    trapped = replace(service, search=replace(service.search, towers=trap))
    with TestClient(create_app(trapped, together, page), URL) as client:
        threads = [
            threading.Thread(
                target=lambda text=text: found.update({text: client.get("/search", params={"text": text})})
            )
            for text in texts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sizes == [3]
    assert "has no words" in detail(found.pop("\u200b"), 422)  # refused before it joins the batch
    assert detail(found.pop("a trap"), 422) == "text: a trap"  # refused within it
    for text, response in found.items():
        (expected,) = service.search.answer([service.search.prepare(Query(text, k=24))])
        assert ids(response.json()["answers"][0]) == [hit.id for hit in expected[0].hits]


@pytest.mark.parametrize("path", ["/", "/healthz", "/search?text=red", "/thumbnails/80", "/static/look.js", "/nowhere"])
def test_head_has_the_headers_of_get_and_no_content(client: TestClient, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert whole.content
    assert not head.content
    assert head.status_code == whole.status_code
    differing = {"content-length"} if path.startswith("/search") else set()  # it says how long the search took
    assert {**head.headers, **dict.fromkeys(differing)} == {**whole.headers, **dict.fromkeys(differing)}


def test_the_etag_of_a_picture_is_known_in_every_form(client: TestClient) -> None:
    etag = client.get("/thumbnails/80").headers["etag"]
    for known in (etag, f"W/{etag}", "*", f'"other", {etag}', f'{etag},"other"', f'W/"a" ,  W/{etag} '):
        assert client.get("/thumbnails/80", headers={"If-None-Match": known}).status_code == 304
    for other in ("", '"', '"other"', etag.strip('"'), f"{etag}x"):
        assert client.get("/thumbnails/80", headers={"If-None-Match": other}).status_code == 200


@pytest.mark.parametrize("path", ["/search", "/match-map"])
def test_a_body_that_is_no_form_is_refused_by_its_type(client: TestClient, path: str) -> None:
    body = b'{"text": "red", "image": "80"}'
    told = detail(client.post(path, content=body, headers={"Content-Type": "application/json"}), 422)
    assert "multipart/form-data" in told
    assert "'application/json'" in told
    assert "no Content-Type" in detail(client.post(path, content=body), 422)
    assert client.post(path, data={"text": "red", "image": "80"}).status_code == 200
    typed = {"Content-Type": "Application/X-WWW-Form-Urlencoded; charset=utf-8"}
    assert client.post(path, content=b"text=red&image=80", headers=typed).status_code == 200


def test_pictures_are_shown_whatever_is_in_their_ids(service: Service) -> None:
    named = copy(service.search.index)
    hostile = [
        "new\nline",
        "end\n",
        "a/../b",
        "../up",
        "/root",
        "a//b",
        "?v=1#x",
        "<script>",
        "a b",
        "\u202egpj",
        "\0",
        "é",
    ]
    named.ids = ImageIds.of(pa.chunked_array([[*hostile, *service.search.index.ids[len(hostile) :]]]))
    app = create_app(replace(service, search=replace(service.search, index=named)))
    with TestClient(app, URL) as client:
        for row, id in enumerate(hostile):
            for kind in ("thumbnails", "images"):
                shown = client.get(f"/{kind}/{quote(id, safe='')}")
                assert shown.status_code == 200
                assert shown.headers["etag"] == f'"{named.folder.name}-{row}"'
