"""Filters by size, id and label, against a loop over all images; and searches that respect them."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import SmallWorld
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as some
from search_fixtures import SearchPaths

from groundray import search as command
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.image_search.errors import BadQuery
from groundray.image_search.filters import Columns, Condition, Filter, Labels
from groundray.image_search.http.app import create_app
from groundray.image_search.image_ids import ImageIds
from groundray.image_search.knn import ExactSearch
from groundray.image_search.query import Query, Search
from groundray.image_search.service import Service

IDS = ("a", "birds/1.jpg", "birds/20.jpg", "birds/x/3.jpg", "B*rds", "été/?.png", "birds", "a\nb", "[a]", "c.d")
SIZES = [(640, 480), (480, 640), (640, 640), (1, 2000), (2000, 1), (641, 480), (639, 480), (5, 5), (640, 479), (7, 8)]


@pytest.fixture(scope="module")
def columns(world: SmallWorld) -> Columns:
    labels = Labels(Dataset.open(str(world.shards / "captions" / "val")))
    return Columns(ImageIds.of(pa.chunked_array([IDS])), np.array(SIZES, np.int32), labels)


def meets(condition: Condition, id: str, width: int, height: int) -> bool:
    """Whether an image meets a condition on its size or id; written out."""
    field, compared, value = condition.field, condition.operator, condition.value
    if field == "orientation":
        found = value == ("square" if width == height else "landscape" if width > height else "portrait")
    elif field == "id":
        found = fnmatch.fnmatchcase(id, value.replace("[", "[[]"))
    else:
        pixels = {"width": width, "height": height}[field]
        value = int(value)
        return {
            "=": pixels == value,
            "!=": pixels != value,
            ">=": pixels >= value,
            "<=": pixels <= value,
            ">": pixels > value,
            "<": pixels < value,
        }[compared]
    return found == (compared == "=")


def accepted(conditions: list[Condition]) -> list[bool]:
    """Whether each image meets all conditions, and one of those with = on a field."""
    found = []
    for id, (width, height) in zip(IDS, SIZES, strict=True):
        alike: dict[str, list[bool]] = {}
        for condition in conditions:
            met = meets(condition, id, width, height)
            alike.setdefault(condition.field if condition.operator == "=" else str(condition), []).append(met)
        found.append(all(any(group) for group in alike.values()))
    return found


CONDITIONS = (
    *(f"{side}{compared}640" for side in ("width", "height") for compared in (">=", "<=", "!=", "=", ">", "<")),
    *(f"orientation{compared}{kind}" for compared in ("=", "!=") for kind in ("landscape", "portrait", "square")),
    *(
        f"id{compared}{pattern}"
        for compared in ("=", "!=")
        for pattern in (
            "birds/*",
            "birds/*.jpg",
            "*",
            "?",
            "birds/?.jpg",
            "*a*",
            "a?b",
            "[a]",
            "été/?*",
            "c.d",
            "B*rds",
        )
    ),
)


@given(some.lists(some.sampled_from(CONDITIONS), max_size=5))
def test_conditions_accept_what_a_loop_accepts(columns: Columns, given: list[str]) -> None:
    filter = Filter.parse(given)
    assert filter.accepted(columns).tolist() == accepted(list(filter.conditions))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wide", "expected a condition such as width>=640"),
        ("width>=", "expected a condition"),
        ("width>=" + "1" * 300, "expected a condition"),
        ("colour=red", "expected a condition on width, height, orientation, id, label, got one on 'colour'"),
        ("id=caf\udce9*", "or label=crow, got 'id=caf\\udce9*'"),
        ("width>=12.5", "expected a number of pixels after width>=, got '12.5'"),
        ("width>=99999999999", "expected a number of pixels"),
        ("width>=²", "expected a number of pixels"),
        ("id>=3", "expected id= or id!=, got id>="),
        ("orientation=flat", "expected orientation=landscape, portrait, square, got 'flat'"),
    ],
)
def test_other_conditions_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadQuery, match=re.escape(message)):
        Filter.parse([text])


def test_too_many_conditions_are_refused_and_equal_ones_count_once() -> None:
    with pytest.raises(BadQuery, match="expected at most 16 conditions, got 17"):
        Filter.parse([f"width!={side}" for side in range(17)])
    assert len(Filter.parse(["id=a", " id = a ", ""] * 9).conditions) == 1


@given(some.integers(1, 60), some.integers(1, 70), some.integers(0, 2**16))
def test_exact_search_finds_the_nearest_of_those_that_are_accepted(count: int, k: int, seed: int) -> None:
    """Bit for bit what a search of these vectors alone finds: products of small integers are exact, and tie."""
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-2, 3, (count, 4)).astype(np.float16)
    queries = generator.integers(-2, 3, (3, 4)).astype(np.float32)
    accepted = generator.random(count) < 0.4
    rows = np.flatnonzero(accepted)
    found = ExactSearch(vectors, block_values=12, block_scores=9)(queries, k, accepted)
    assert found.rows.shape == (3, min(k, len(rows)))
    for query, scores, best in zip(queries, found.scores, found.rows, strict=True):
        products = {row: float(vectors[row].astype(np.float32) @ query) for row in rows.tolist()}
        expected = sorted(products, key=lambda row: (-products[row], row))[:k]
        assert best.tolist() == expected
        assert scores.tolist() == [products[row] for row in expected]


@pytest.fixture(scope="module")
def labelled(world: SmallWorld, place: SearchPaths) -> SearchPaths:
    """The pool of single objects, each with its class."""
    return SearchPaths(place.checkpoint, str(world.shards / "objects" / "train"), place.index, place.norms)


@pytest.fixture(scope="module")
def search(labelled: SearchPaths) -> Search:
    return labelled.search()


def classes(search: Search) -> dict[str, str]:
    """The class of each image, by id."""
    pool = search.index.images
    table = read_rows(pool, np.arange(pool.rows), ["id", "label"])
    names = (pool.vocabulary["classes"][label] for label in table["label"].to_pylist())
    return dict(zip(table["id"].to_pylist(), names, strict=True))


def test_a_filtered_search_finds_the_first_of_those_that_meet_it(search: Search) -> None:
    label_of = classes(search)
    one, other, *_ = sorted(set(label_of.values()))
    everything = search.find("a red star", k=200)
    assert len(everything) == len(search.index) > 20
    for conditions, meets in (
        ([f"label={one}"], lambda id: label_of[id] == one),
        ([f"label={one}", f"label={other}"], lambda id: label_of[id] in (one, other)),
        ([f"label!={one}", "id=*1*"], lambda id: label_of[id] != one and "1" in id),
        (["width>5000"], lambda id: False),
    ):
        expected = [hit for hit in everything if meets(hit.id)]
        for k in (3, 200):
            found = search.find("a red star", k=k, filter=conditions)
            assert [hit.id for hit in found] == [hit.id for hit in expected][:k], conditions
            assert [hit.rank for hit in found] == [*range(1, len(found) + 1)]


def test_queries_with_different_filters_are_answered_together(search: Search) -> None:
    label = min(classes(search).values())
    queries = [
        Query("red", k=3, filter=Filter.parse(["id=*1*"])),
        Query("blue", search.index.ids[3], (0.2, 0.7), 5),
        Query("blue", search.index.ids[3], (0.2, 0.7), 4, filter=Filter.parse([f"label={label}"])),
        Query("star", k=7, filter=Filter.parse(["id=*1*"]), offset=2),
    ]
    together = search.answer([search.prepare(query) for query in queries])
    for query, answers in zip(queries, together, strict=True):
        (alone,) = search.answer([search.prepare(query)])
        assert [answer.alpha for answer in answers] == [answer.alpha for answer in alone]
        for one, two in zip(answers, alone, strict=True):
            assert [hit.id for hit in one.hits] == [hit.id for hit in two.hits]


def test_labels_of_scene_graphs_are_those_of_any_object(world: SmallWorld) -> None:
    pool = Dataset.open(str(world.shards / "scene_graphs" / "train"))
    rows = read_rows(pool, np.arange(pool.rows), ["objects"])["objects"].to_pylist()
    labels = Labels(pool)
    for number, name in enumerate(labels.names):
        expected = [any(item["class"] == number for item in row) for row in rows]
        assert labels.having(name).tolist() == expected
    assert sum(labels.having(name).sum() for name in labels.names[1:]) > pool.rows


def test_labels_that_are_not_there_are_refused(search: Search, columns: Columns) -> None:
    with pytest.raises(BadQuery, match=r"expected one of the \d+ labels .*, got 'dragon'"):
        search.find("red", filter=["label=dragon"])
    with pytest.raises(BadQuery, match="expected shards of kind labelled_images and scene_graphs for a label, got cap"):
        Filter.parse(["label=dragon"]).accepted(columns)


def test_pages_of_results_join_to_one_answer(search: Search) -> None:
    whole = search.find("red", k=30)
    assert [hit for offset in (0, 10, 20) for hit in search.find("red", k=10, offset=offset)] == list(whole)
    assert search.find("red", k=10, offset=len(search.index)) == ()
    with pytest.raises(BadQuery, match="offset: expected 0 to 9,990 for 10 images, got 9,991"):
        search.find("red", k=10, offset=9991)


def test_the_service_and_the_command_filter(
    labelled: SearchPaths, search: Search, service: Service, tmp_path: Path
) -> None:
    label = min(classes(search).values())
    expected = [hit.id for hit in search.find("red", k=5, filter=[f"label={label}", "width>=1"], offset=1)]
    client = TestClient(create_app(Service(search, service.matcher, service.space)), "http://localhost")
    fields = {"text": "red", "k": 5, "offset": 1, "filter": [f"label={label}", "width>=1"]}
    found = client.get("/search", params=fields).json()  # type: ignore[arg-type]
    assert [result["id"] for result in found["answers"][0]["results"]] == expected
    assert client.get("/search?text=red&filter=label%3Ddragon").status_code == 422
    file = tmp_path / "found.json"
    words = ["--text", "red", "--filter", f"label={label}", "width>=1", "--k", "6", "--json", str(file)]
    assert command.main([*labelled.options, *words]) == 0
    (answer,) = json.loads(file.read_text())
    assert [hit["id"] for hit in answer["hits"]][1:] == expected
    assert command.main([*labelled.options, "--text", "red", "--filter", "big"]) == 2
