"""Two-stage search: what vectors find is ranked again by the match map."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from conftest import SmallWorld
from fastapi.testclient import TestClient
from search_fixtures import SearchPaths, write_model

from groundray import search as command
from groundray import serve
from groundray.cli import image_index
from groundray.cli.command import plain_console
from groundray.image_search import rerank
from groundray.image_search.errors import BadQuery
from groundray.image_search.explain import GroundingMatcher
from groundray.image_search.http.app import create_app
from groundray.image_search.index import open_pool
from groundray.image_search.positions import (
    FILE,
    PositionEncoder,
    Positions,
    Quantised,
    find_positions,
    make_positions,
    open_positions,
)
from groundray.image_search.query import WITHOUT, Query, Search
from groundray.image_search.rerank import CLEARNESS, NAMED, Names, Ranked, Reranker, best_matches, mix_scores
from groundray.image_search.service import Service
from groundray.model.heads import GroundingHeads

WHOLE = 20  # images of the pool


@pytest.fixture(scope="module")
def search(place: SearchPaths) -> Search:
    return Search.open(place.checkpoint, place.images, place.index)


@pytest.fixture(scope="module")
def reranker(search: Search) -> Reranker:
    assert search.reranker is not None
    return search.reranker


def quantised(generator: np.random.Generator, *shape: int) -> Quantised:
    return Quantised.of(generator.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("block_values", [1, 100, 10**6])
def test_best_matches_are_those_of_a_loop(block_values: int) -> None:
    generator = np.random.default_rng(0)
    images, features = quantised(generator, 5, 9, 7), generator.standard_normal((4, 7)).astype(np.float32)
    values = images.float32().tolist()
    found, other = best_matches(images, features, features[1:3], block_values=block_values)
    expected = [[reference.match_score(image, [feature], [1.0]) for feature in features.tolist()] for image in values]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # sums of 7 products in float32
    np.testing.assert_allclose(other, found[:, 1:3], rtol=1e-5, atol=1e-5)


def test_features_are_rounded_by_half_a_level_at_most() -> None:
    features = np.random.default_rng(0).standard_normal((3, 4, 50)).astype(np.float32)
    features[1, 2] = 0
    rounded = Quantised.of(features)
    assert (np.abs(rounded.float32() - features) <= 0.5001 * rounded.scales[:, :, None]).all()
    assert not rounded.float32()[1, 2].any()


def test_scores_are_those_of_loops_over_positions_and_words(search: Search, reranker: Reranker) -> None:
    texts, row = ["a red star", "striped"], 7
    text = reranker.text_part(reranker.matcher.word_features_of(texts), search.towers.embed_texts(["a red star"])[0])
    image = reranker.image_part(search.index.vector(row), None, row)
    rows = np.array([3, 11, 7])
    found = reranker.scores([text, image], rows)

    words = [reranker.matcher.word_features(each).features.tolist() for each in texts]
    expected = []
    for part in (text, image):
        every = [int(each) for each in (*rows, *reranker.sample)]
        cosines = [float(search.index.vector(each) @ part.vector) for each in every]
        maps = [reranker.positions[np.array([each])].float32()[0].tolist() for each in every]
        if part is text:
            matches = [np.mean([reference.match_score(m, w, [1 / len(w)] * len(w)) for w in words]) for m in maps]
        else:
            matches = [reference.match_score(m, part.features.tolist(), part.weights.tolist()) for m in maps]
        both = [(some[: len(rows)], some[len(rows) :]) for some in (cosines, matches)]
        expected.append(
            [
                sum(
                    weight * reference.above_mean(float(scores[at]), [*map(float, sample)])
                    for weight, (scores, sample) in zip((1 / 3, 2 / 3), both, strict=True)
                )
                for at in range(len(rows))
            ]
        )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)  # differences of nearly equal float32 numbers


def test_positions_that_differ_from_the_pool_count_most(reranker: Reranker) -> None:
    width = len(reranker.mean_position)
    usual, other = reranker.mean_position, np.roll(reranker.mean_position, 1)
    features = np.tile(usual, (12, 1))
    features[5] = other
    part = reranker.image_part(np.zeros(width, np.float32), features)
    assert part.weights.sum() == pytest.approx(1)
    assert part.features[part.weights.argmax()].tolist() == other.tolist()
    assert part.weights.max() > 0.99


def test_the_ends_of_a_mix_are_exactly_the_image_and_the_text(search: Search) -> None:
    assert search.find("blue star", "80", alpha=0.0, k=WHOLE) == search.find(image="80", k=WHOLE)
    assert search.find("blue star", "80", alpha=1.0, k=WHOLE) == search.find("blue star", k=WHOLE)
    ones = np.arange(3, dtype=np.float32)
    assert mix_scores(ones, 5 * ones, 0.25).tolist() == [0, 2, 4]


def test_a_mix_weighs_the_scores_of_its_parts(search: Search) -> None:
    def matches(**query: object) -> dict[str, float]:
        return {hit.id: hit.match or 0.0 for hit in search.find(k=WHOLE, **query)}  # type: ignore[arg-type]

    image, text, without = matches(image="80"), matches(text="blue"), matches(text="star")
    described = described_by(search, "80")
    for alpha, named in ((0.25, NAMED / 2), (0.6, NAMED)):
        mixed = matches(image="80", text="blue", alpha=alpha, without="star")
        for id, match in mixed.items():
            shown = (1 - named) * image[id] + named * described[id]
            expected = (1 - alpha) * shown + alpha * text[id] - WITHOUT * without[id]
            assert match == pytest.approx(expected, abs=1e-4)
        assert list(mixed.values()) == sorted(mixed.values(), reverse=True)


def described_by(search: Search, id: str) -> dict[str, float]:
    """Return the score of each image of the pool for the description of one."""
    reranker, row = search.reranker, search.index.row(id)
    assert reranker is not None
    description = reranker.description(search.index.vector(row), None, row)
    assert description is not None
    (scores,) = reranker.scores([description], np.arange(WHOLE))
    return dict(zip(search.index.ids, scores.tolist(), strict=True))


def test_a_mix_without_object_classes_is_of_looks_and_text(search: Search, reranker: Reranker) -> None:
    plain = replace(search, reranker=replace(reranker, names=None))
    image, text, mixed = (
        {hit.id: hit.match or 0.0 for hit in plain.find(*query, k=WHOLE)}
        for query in ((None, "80"), ("blue",), ("blue", "80", 0.5))
    )
    assert mixed == {id: pytest.approx((image[id] + text[id]) / 2, abs=1e-4) for id in mixed}
    assert plain.find(image="80", k=WHOLE) == search.find(image="80", k=WHOLE)


def test_an_uploaded_picture_is_described_as_in_the_pool(search: Search) -> None:
    (by_id, uploaded) = (
        {hit.id: hit.match for hit in search.find("blue", image, k=WHOLE)}
        for image in ("80", search.index.pictures[search.index.row("80")])
    )
    assert uploaded == {id: pytest.approx(match, abs=0.05) for id, match in by_id.items()}  # one byte a feature


def test_a_picture_is_described_by_the_classes_that_match_it_best(search: Search, reranker: Reranker) -> None:
    names, row = ("a red star", "circle", "blue"), 7
    vectors = reranker.sampled_vectors
    by_names = replace(reranker, names=Names.of(names, reranker.matcher, search.towers, reranker.sampled, vectors))
    part = by_names.description(search.index.vector(row), None, row)
    assert part is not None

    texts = [
        by_names.text_part([by_names.matcher.word_features(name)], search.towers.embed_texts([name])[0])
        for name in names
    ]
    scores = by_names.scores(texts, np.array([row]))[:, 0].tolist()
    clear = [max(score, 1e-6) for score in scores]
    shares = [(each / max(clear)) ** CLEARNESS for each in clear]
    shares = [each / sum(shares) for each in shares]
    vector = sum(share * text.vector for share, text in zip(shares, texts, strict=True))
    np.testing.assert_allclose(part.vector, vector / np.linalg.norm(vector), atol=1e-3)
    weights = np.concatenate([share * text.weights for share, text in zip(shares, texts, strict=True)])
    features = np.concatenate([text.features for text in texts])
    np.testing.assert_allclose(part.weights @ part.features, weights @ features, atol=1e-3)
    assert part.weights.sum() == pytest.approx(1, abs=1e-5)


def test_a_model_has_the_names_of_its_object_classes(reranker: Reranker, search: Search) -> None:
    assert reranker.matcher.classes == ("circle", "star")
    assert reranker.names is not None
    assert reranker.names.weights.tolist() == [[1, 0], [0, 1]]
    vectors = reranker.sampled_vectors
    assert Names.of((), reranker.matcher, search.towers, reranker.sampled, vectors) is None


def test_an_image_finds_itself_first_by_id_or_upload(search: Search) -> None:
    row = search.index.row("72")
    for image in ("72", search.index.pictures[row]):
        assert search.find(image=image, k=3)[0].id == "72"


def test_many_queries_at_once_are_answered_as_each_alone(search: Search) -> None:
    picture = search.index.pictures[4]
    queries = [
        Query("red", k=3),
        Query(("a ring", "blue"), picture, (0.2, 0.7), 5, rerank=4),
        Query("red", "75", (0.0, 0.5, 1.0), 20, without="star"),
        Query("red", k=3, rerank=0),
    ]
    together = search.answer([search.prepare(query) for query in queries])
    for query, answers in zip(queries, together, strict=True):
        (alone,) = search.answer([search.prepare(query)])
        for one, other in zip(answers, alone, strict=True):
            assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
            scores = [[np.nan if hit.match is None else hit.match for hit in each.hits] for each in (one, other)]
            np.testing.assert_allclose(*scores, atol=1e-4)


def test_match_maps_that_are_no_numbers_are_named(place: SearchPaths, search: Search, reranker: Reranker) -> None:
    matcher = GroundingMatcher.load(place.checkpoint)
    assert matcher is not None
    heads = matcher.model.head(GroundingHeads)
    with torch.no_grad():
        for parameter in (*heads.language.parameters(), *heads.visual.parameters()):
            parameter.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model gives match maps that are not finite"):
        replace(search, reranker=replace(reranker, matcher=matcher)).find("red")
    with pytest.raises(ValueError, match="the model gives position features that are not finite"):
        PositionEncoder(matcher, place.images).encode(np.zeros((1, 3, 112, 112), np.uint8))


def test_only_the_nearest_are_ranked_again(place: SearchPaths, search: Search) -> None:
    by_vectors = Search.open(place.checkpoint, place.images, place.index, rerank=0)
    nearest = by_vectors.find("a red star", k=WHOLE)
    assert search.find("a red star", k=WHOLE, rerank=0) == nearest
    again = search.find("a red star", k=WHOLE, rerank=5)
    assert {hit.id for hit in again[:5]} == {hit.id for hit in nearest[:5]}
    assert [hit.match is None for hit in again] == [False] * 5 + [True] * 15
    assert again[5:] == nearest[5:]
    assert {hit.id: hit.score for hit in again} == {hit.id: hit.score for hit in nearest}


def test_fewer_candidates_than_asked_for_are_ranked() -> None:
    found = Ranked.of(np.array([0.9, 0.8, 0.0], np.float32), np.array([4, 2, -1]))
    ranked = found.reordered(np.array([1.0, 2.0], np.float32))
    assert [*ranked.between(0, 5)] == [(2, pytest.approx(0.8), 2.0), (4, pytest.approx(0.9), 1.0)]


def test_features_are_made_again_where_they_are_gone_or_damaged(
    place: SearchPaths, search: Search, reranker: Reranker, tmp_path: Path
) -> None:
    def opened() -> np.ndarray:
        spec = find_positions(reranker.matcher, open_pool(place.images), str(tmp_path))
        return make_positions(reranker.matcher, spec, lines.append)[np.arange(WHOLE)].float32()

    lines: list[str] = []
    first = opened()
    assert np.array_equal(first, reranker.positions[np.arange(WHOLE)].float32())
    assert len(lines) == 1
    (folder,) = tmp_path.iterdir()
    damaged = bytearray((folder / FILE).read_bytes())
    damaged[100] ^= 1
    (folder / FILE).write_bytes(damaged)
    assert np.array_equal(opened(), first)
    assert len(lines) == 2
    for part in folder.glob("part-*"):
        part.unlink()
    assert np.array_equal(opened(), first)
    assert len(lines) == 3


def test_each_image_has_the_features_of_its_positions(place: SearchPaths, reranker: Reranker, search: Search) -> None:
    pixels = reranker.matcher.preprocess(search.index.pictures[13])
    features = reranker.matcher.position_features(pixels[None])
    stored = reranker.positions[np.array([13])]
    assert (np.abs(stored.float32() - features) <= 0.51 * stored.scales[:, :, None]).all()
    assert PositionEncoder(reranker.matcher, place.images).columns == ("id", "image")


def test_a_model_without_match_maps_is_searched_by_vectors(
    world: SmallWorld, place: SearchPaths, tmp_path: Path
) -> None:
    checkpoint = write_model(tmp_path / "model", world, ["relational", "retrieval"])
    search = Search.open(checkpoint, place.images, str(tmp_path / "index"))
    assert search.reranker is None
    assert [hit.match for hit in search.find("red", k=3)] == [None] * 3
    with pytest.raises(BadQuery, match="rerank: expected 0, got 5"):
        search.find("red", rerank=5)


def test_nothing_is_made_without_ranking_again(place: SearchPaths, tmp_path: Path) -> None:
    Search.open(place.checkpoint, place.images, str(tmp_path), rerank=0)
    assert len([*tmp_path.iterdir()]) == 1


def test_rerank_is_refused_out_of_range() -> None:
    for number in (-1, 1001):
        with pytest.raises(BadQuery, match=f"rerank: expected 0 .* to 1,000, got {number}"):
            Query("red", rerank=number)


def test_no_search_is_opened_with_a_number_out_of_range(
    place: SearchPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (-1, 1001):
        with pytest.raises(BadQuery, match="rerank: expected 0"):
            Search.open(place.checkpoint, place.images, str(tmp_path), rerank=number)
        options = [*place.options, "--index", str(tmp_path), "--rerank", str(number)]
        assert command.main([*options, "--text", "red"]) == 2
        assert serve.main([*options, "--port", "0"]) == 2
        assert capsys.readouterr().err.count("rerank: expected 0") == 2
    assert not list(tmp_path.iterdir())


def test_images_are_scored_some_at_a_time(search: Search, reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mix at a hundred alphas may have found a hundred thousand images: their features do not fit into memory."""
    words, rows = reranker.matcher.word_features("blue"), np.arange(WHOLE)
    text = reranker.text_part([words], search.towers.embed_texts(["blue"])[0])
    whole, taken = reranker.scores([text], rows), []

    class Counted(Positions):
        def __getitem__(self, rows: np.ndarray) -> Quantised:
            taken.append(len(rows))
            return reranker.positions[rows]

    monkeypatch.setattr(rerank, "BLOCK_IMAGES", 6)
    counted = replace(reranker, positions=Counted(np.empty(0, np.uint8), *reranker.positions.shape))
    np.testing.assert_allclose(counted.scores([text], rows), whole, atol=1e-5)
    assert taken == [6, 6, 6, 2]


def test_features_of_a_pool_that_was_replaced_are_not_taken_with_the_index_of_the_former(
    place: SearchPaths, world: SmallWorld, tmp_path: Path
) -> None:
    pool, paths = tmp_path / "pool", ["--checkpoint", place.checkpoint, "--index", str(tmp_path / "index")]
    shutil.copytree(place.images, pool)
    options, console = command.build_parser().parse_args([*paths, "--images", str(pool)]), plain_console()
    towers, spec = image_index.open_index(options, console)
    shutil.rmtree(pool)
    shutil.copytree(world.shards / "captions" / "train", pool)
    with pytest.raises(ValueError, match="replaced since this command opened"):
        image_index.open_positions(options, console, towers, spec.source)


def test_missing_features_are_named_with_the_repair(
    place: SearchPaths, search: Search, reranker: Reranker, tmp_path: Path
) -> None:
    spec = find_positions(reranker.matcher, open_pool(place.images), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no position features .* `python -m groundray.search`"):
        open_positions(spec, print)


def test_http_says_what_images_are_ranked_by(search: Search, service: Service) -> None:
    client = TestClient(create_app(replace(service, search=search)), base_url="http://localhost")
    query = {"text": "blue", "image": "80", "k": 4}
    (answer,) = client.get("/search", params=query).raise_for_status().json()["answers"]
    expected = search.find("blue", "80", k=4)
    assert [each["id"] for each in answer["results"]] == [hit.id for hit in expected]
    assert [each["match"] for each in answer["results"]] == pytest.approx([hit.match for hit in expected])
    (answer,) = client.get("/search", params={**query, "rerank": 0}).json()["answers"]
    assert [each["match"] for each in answer["results"]] == [None] * 4
    assert client.get("/search", params={**query, "rerank": 1001}).status_code == 422


def test_the_command_shows_match_and_cosine(
    place: SearchPaths, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert command.main([*place.options, "--text", "red", "--k", "3", "--rerank", "10", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    (answer,) = json.loads(file.read_text())
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in search.find("red", k=3, rerank=10)]
    assert "match" in shown
    assert f"{answer['hits'][0]['match']:.2f}" in shown
