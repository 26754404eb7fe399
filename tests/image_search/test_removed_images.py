"""Images that were removed from a pool: nothing finds or shows them, and nothing is encoded for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from search_fixtures import SearchPaths

from groundray import search as command
from groundray.data.removed_rows import with_removed
from groundray.data.schema import Dataset
from groundray.image_search.errors import UnknownImage
from groundray.image_search.filters import Filter
from groundray.image_search.http.app import create_app
from groundray.image_search.index import find_index, open_pool
from groundray.image_search.inverted_file import InvertedFileSearch
from groundray.image_search.query import Search
from groundray.image_search.service import Service

REMOVED = np.array([0, 7, 19])


@pytest.fixture
def pool(place: SearchPaths, tmp_path: Path) -> str:
    folder = tmp_path / "pool"
    shutil.copytree(place.images, folder)
    with_removed(Dataset.open(str(folder)), REMOVED).write_index()
    return str(folder)


def test_no_search_finds_them(service: Service, place: SearchPaths, pool: str) -> None:
    before = sorted(Path(place.index).iterdir())
    search, whole = Search.open(place.checkpoint, pool, place.index, rerank=0), service.search
    assert sorted(Path(place.index).iterdir()) == before
    gone = {whole.index.ids[row] for row in REMOVED.tolist()}
    for k in (5, 20):
        expected = [(hit.id, hit.score) for hit in whole.find("a red heart", k=20) if hit.id not in gone][:k]
        found = search.find("a red heart", k=k)
        assert [hit.id for hit in found] == [id for id, _ in expected]
        np.testing.assert_allclose([hit.score for hit in found], [score for _, score in expected], atol=1e-6)
        assert [hit.rank for hit in found] == [*range(1, len(expected) + 1)]
    assert len(search.index) == 17
    assert {hit.id for hit in search.find("a red heart", k=20, filter=["width>=1"])} == set(whole.index.ids) - gone
    accepted = search.index.accepted(Filter.parse(["id=7*"]))
    assert accepted is not None
    expected_rows = [row for row, id in enumerate(whole.index.ids) if id.startswith("7") and id not in gone]
    assert np.flatnonzero(accepted).tolist() == expected_rows


def test_nothing_is_found_where_all_were_removed(
    place: SearchPaths, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with_removed(Dataset.open(pool), np.arange(20)).write_index()
    search = Search.open(place.checkpoint, pool, place.index)
    assert len(search.index) == 0
    for query in ({"text": "a red heart"}, {"text": "a red heart", "filter": ["width>=1"]}):
        assert search.find(**query) == ()
    with pytest.raises(UnknownImage, match="which has none left, got 'other'"):
        search.find(image="other")
    assert command.main([*place.options, "--images", pool, "--text", "red"]) == 0
    shown = capsys.readouterr().out
    assert "the pool has no images left" in shown
    assert "rank" not in shown


def test_the_scores_of_the_others_stay(place: SearchPaths, pool: str) -> None:
    whole, search = (Search.open(place.checkpoint, images, place.index) for images in (place.images, pool))
    gone = {whole.index.ids[row] for row in REMOVED.tolist()}
    expected = {hit.id: hit.match for hit in whole.find("a red heart", k=20) if hit.id not in gone}
    found = search.find("a red heart", k=20)
    assert [hit.id for hit in found] == list(expected)
    np.testing.assert_allclose([hit.match for hit in found], list(expected.values()), atol=1e-5)


def test_neither_does_faiss(service: Service, place: SearchPaths, pool: str) -> None:
    pytest.importorskip("faiss")
    towers, ids = service.search.towers, service.search.index.ids
    search = Search.over(towers, find_index(towers, open_pool(pool), place.index), lambda line: None, max_exact=10)
    assert isinstance(search.nearest, InvertedFileSearch)
    assert {hit.id for hit in search.find("a red heart", k=20)} == set(ids) - {ids[row] for row in REMOVED.tolist()}


def test_their_ids_are_unknown(service: Service, place: SearchPaths, pool: str) -> None:
    index, whole = Search.open(place.checkpoint, pool, place.index, rerank=0).index, service.search.index
    for row, id in enumerate(whole.ids):
        assert (id in index) == (row not in REMOVED)
    with pytest.raises(UnknownImage, match=rf"one of the 17 images of the pool \(such as '{whole.ids[1]}'\)"):
        index.row(whole.ids[0])


def test_the_page_does_not_show_them(service: Service, place: SearchPaths, pool: str) -> None:
    served = Service.open(place.checkpoint, pool, place.index, place.norms, rerank=0)
    gone = service.search.index.ids[7]
    with TestClient(create_app(served), "http://localhost") as client:
        assert client.get("/healthz").json()["images"] == 17
        shown = client.get("/pool", params={"k": 20}).json()
        assert shown["total"] == len(shown["results"]) == 17
        assert gone not in {image["id"] for image in shown["results"]}
        for path in (f"/thumbnails/{gone}", f"/images/{gone}", f"/search?image={gone}"):
            assert client.get(path).status_code == 404
