"""The page's answers for models of other language encoders than BERT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import encoders
import numpy as np
import pytest
from conftest import SmallWorld
from fastapi.testclient import TestClient
from search_fixtures import SearchPaths, write_model

from groundray.data.schema import Dataset
from groundray.data.shards import read_group
from groundray.image_search.http.app import create_app
from groundray.image_search.service import Service
from groundray.image_search.word_space import WordSpace

pytestmark = pytest.mark.thorough  # other models behind the service of test_http.py

NAMES = ("roberta", "clip_text_model", "siglip_text_model")


@pytest.fixture(scope="module", params=NAMES)
def place(request: pytest.FixtureRequest, world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> SearchPaths:
    root = tmp_path_factory.mktemp(request.param)
    captions = read_group(Dataset.open(str(world.shards / "captions" / "train"), "captions"), 0, ["captions"])
    texts = tuple(text for row in captions["captions"].to_pylist() for text in row)
    options = (
        f"--model.language.name={encoders.write(root / 'encoder', request.param, texts=texts)}",
        "--model.language.weights=published",
        "--model.language.tokenizer=null",
        *("--model.attention_heads=2", "--model.relational.attention_heads=2"),
    )
    checkpoint = write_model(root / "model", world, options=options)
    pool = str(world.shards / "captions" / "val")
    return SearchPaths(checkpoint, pool, str(root / "index"), str(world.source / "norms"))


@pytest.fixture(scope="module")
def service(place: SearchPaths) -> Service:
    return Service.open(place.checkpoint, place.images, place.index, place.norms)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), "http://localhost", raise_server_exceptions=False) as client:
        yield client


def answer(client: TestClient, path: str, **params: Any) -> Any:
    response = client.get(path, params=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_searches_and_mixed_queries_are_answered(client: TestClient, service: Service) -> None:
    assert answer(client, "/healthz")["images"] == 20
    for query in ({"text": "a red star"}, {"text": "red", "image": "80", "alpha": 0.5}, {"image": "80"}):
        (found,) = answer(client, "/search", k=20, **query)["answers"]
        assert {result["id"] for result in found["results"]} == {service.search.index.ids[row] for row in range(20)}
        assert len({round(result["score"], 5) for result in found["results"]}) > 10
    hits = service.search.find("a red star", k=3)
    (found,) = answer(client, "/search", text="a red star", k=3)["answers"]
    assert [result["id"] for result in found["results"]] == [hit.id for hit in hits]


def test_a_match_map_has_whole_words(client: TestClient) -> None:
    """Their pieces are joined, though byte-level pieces begin with a space and CLIP's end with a mark."""
    found = answer(client, "/match-map", text="a red circle", image="80")
    words = [(token["text"], token["start"], token["end"]) for token in found["tokens"]]
    assert words == [("a", 0, 1), ("red", 2, 5), ("circle", 6, 12)]
    maps = np.array([token["map"] for token in found["tokens"]])
    assert maps.shape[1:] == (found["rows"], found["columns"]) == (7, 7)
    assert np.isfinite(maps).all()
    assert maps.std() > 0


def test_words_are_placed_and_have_neighbours(client: TestClient, service: Service) -> None:
    found = answer(client, "/words", axes=2)
    assert found["models"] == ["ungrounded", "grounded"]
    assert {"circle", "red", "star"} <= {word["text"] for word in found["words"]}
    landed = answer(client, "/words", text="red circle", k=4)
    for name, landing in service.space.place("red circle", axes=3, k=4).items():
        assert landed["at"][name] == pytest.approx(landing.at)
        assert len(landed["neighbours"][name]) == 4


def test_without_norms_the_whole_words_of_the_tokenizer_are_placed(place: SearchPaths, service: Service) -> None:
    tokenizer = service.search.towers.backend
    shown = {word.text for word in WordSpace.open(place.checkpoint, None, tokenizer).words.shown}
    assert len(shown) > 5
    assert not any(text.startswith(("Ġ", "▁")) or text.endswith("</w>") for text in shown)
    for text in shown:
        pieces = [tokenizer.encode(f"{before}{text}", add_special_tokens=False).ids for before in ("", " ")]
        assert min(map(len, pieces)) == 1, text
