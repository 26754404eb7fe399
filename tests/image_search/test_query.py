"""Queries by image, text and both, against vectors that are made and compared one by one."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from search_fixtures import SearchPaths, Trap

from groundray import search as command
from groundray.data.image_decoder import UnusableImage
from groundray.image_search.errors import BadQuery, UnknownImage
from groundray.image_search.query import WITHOUT, Answer, Hit, Query, Search, mix_vectors
from groundray.image_search.service import Service
from groundray.image_search.towers import RetrievalTowers
from groundray.model import export
from groundray.model.heads import RetrievalHeads
from groundray.model.relation_module import RelationalModule

STEPS = tuple(step / 20 for step in range(21))


@pytest.fixture
def search(service: Service) -> Search:
    return service.search


def vector_of(place: SearchPaths, text: str) -> np.ndarray:
    """A text's vector, through the model's modules."""
    found = export.load(place.checkpoint, "retrieval")
    pieces = found.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        queries = found.model.head(RelationalModule).attention.query(
            found.model.language.bert(pieces).last_hidden_state
        )
        vector = found.model.head(RetrievalHeads).text(queries).mean(dim=1)[0]
    return (vector / vector.norm()).numpy()


def close(answer: Answer, search: Search, query: np.ndarray) -> bool:
    """Whether an answer is that of a loop over all images; cosines that differ by less than float32 can tell may be in
    any order. The cosine takes the stored vectors to be of length 1, which they are within 2^-11."""
    vectors, unit = np.asarray(search.index.vectors, np.float64), query / np.linalg.norm(query.astype(np.float64))
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, 1, atol=2**-11)
    cosines = dict(reference.ranked(vectors.tolist(), unit.tolist(), len(vectors)))
    products = {row: cosine * lengths[row] for row, cosine in cosines.items()}
    expected = [(row, products[row]) for row in sorted(products, key=lambda row: (-products[row], row))]
    expected = expected[: len(answer.hits)]
    scores = [hit.score for hit in answer.hits]
    assert scores == pytest.approx([score for _, score in expected], abs=2e-6)
    assert [hit.rank for hit in answer.hits] == [*range(1, len(scores) + 1)]
    gaps = -np.diff(scores)
    return [hit.id for hit in answer.hits] == [search.index.ids[row] for row, _ in expected] or gaps.min() < 2e-6


def test_text_finds_the_nearest_images(place: SearchPaths, search: Search) -> None:
    for text in ("red", "a striped circle above a blue star"):
        assert close(Answer(1.0, search.find(text=text, k=20)), search, vector_of(place, text))


def test_an_image_finds_itself_first_by_id_or_upload(search: Search) -> None:
    for id in ("72", "85"):
        row = search.index.row(id)
        by_id, brought = search.find(image=id, k=20), search.find(image=search.index.pictures[row], k=20)
        assert by_id[0].id == brought[0].id == id
        # float16 rounds the vectors of the pool, and so the query by id, by 2^-11 of their length at most
        assert by_id[0].score == pytest.approx(1, abs=2**-11)
        assert [hit.score for hit in brought] == pytest.approx([hit.score for hit in by_id], abs=2**-11)
        assert close(Answer(0.0, by_id), search, search.index.vector(row))


def test_alpha_goes_from_the_image_to_the_text(place: SearchPaths, search: Search) -> None:
    text, image = vector_of(place, "blue star"), search.index.vector(search.index.row("80"))
    (answers,) = search.answer([search.prepare(Query("blue star", "80", STEPS, k=20))])
    assert [answer.alpha for answer in answers] == list(STEPS)
    for answer in answers:
        assert close(answer, search, (1 - answer.alpha) * image + answer.alpha * text), answer.alpha


def test_the_ends_of_alpha_are_exactly_the_image_and_the_text(search: Search) -> None:
    image, text = search.index.vector(3), search.towers.embed_texts(["blue star"])[0]
    assert np.array_equal(mix_vectors(image, text, 0.0), mix_vectors(image, None, 0.5))
    assert np.array_equal(mix_vectors(image, text, 1.0), mix_vectors(None, text, 0.5))
    assert search.find("blue star", "80", alpha=0.0, k=20) == search.find(image="80", k=20)
    assert search.find("blue star", "80", alpha=1.0, k=20) == search.find("blue star", k=20)


@pytest.mark.parametrize("error", [BadQuery("text: a trap"), RuntimeError("out of memory")])
def test_a_query_that_fails_in_a_batch_fails_alone(search: Search, error: Exception) -> None:
    trap = Trap(search.towers, "a trap", error)
    queries = [search.prepare(Query(text, k=3)) for text in ("red", "a trap", "blue star")]
    found = replace(search, towers=trap).answer_or_fail(queries)
    assert trap.asked == [["red", "a trap", "blue star"], ["red"], ["a trap"], ["blue star"]]
    assert found[1] is error
    assert [found[0], found[2]] == [search.answer([query])[0] for query in (queries[0], queries[2])]
    assert replace(search, towers=trap).answer_or_fail([]) == []


def test_a_model_whose_vectors_are_no_numbers_is_named(place: SearchPaths, tmp_path: Path) -> None:
    towers = RetrievalTowers.load(place.checkpoint)
    heads, whole = towers.model.head(RetrievalHeads), place.search()
    with torch.no_grad():
        for parameter in heads.text.parameters():
            parameter.fill_(float("nan"))
        with pytest.raises(ValueError, match="the model gives vectors of texts that are not finite"):
            replace(whole, towers=towers).find("red")
        for parameter in heads.image.parameters():
            parameter.fill_(float("inf"))
    with pytest.raises(ValueError, match="the model gives vectors of pictures that are not finite"):
        replace(whole, towers=towers).find(image=encoded((60, 40)))
    with pytest.raises(ValueError, match="the model gives vectors of pictures that are not finite"):
        Search.of(towers, place.images, str(tmp_path))
    assert not list(tmp_path.rglob("*.parquet"))


def test_spaces_beside_a_text_are_refused_before_a_batch(search: Search) -> None:
    for query in (Query(("red", " ")), Query("red", without=" ")):
        with pytest.raises(BadQuery, match="has no words"):
            search.prepare(query)


def test_opposite_ends_cancel_to_a_query_that_finds_anything() -> None:
    one = np.array([0.6, 0.8], np.float32)
    assert np.array_equal(mix_vectors(one, -one, 0.5), np.zeros(2))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_several_texts_are_the_mean_of_their_vectors(place: SearchPaths, search: Search) -> None:
    texts = ("star", "blue", "a large ring")
    mean = unit(np.mean([vector_of(place, text) for text in texts], axis=0))
    image = search.index.vector(search.index.row("80"))
    assert close(Answer(1.0, search.find(texts, k=20)), search, mean)
    assert close(Answer(0.3, search.find(texts, "80", alpha=0.3, k=20)), search, 0.7 * image + 0.3 * mean)
    assert search.find(texts, "80", alpha=0.0, k=20) == search.find(image="80", k=20)
    assert search.find(texts, "80", alpha=1.0, k=20) == search.find(texts, k=20)
    assert search.find(("star",), k=20) == search.find("star", k=20)  # bit by bit
    assert search.find(("star", ""), k=20) == search.find("star", k=20)


def test_a_text_is_left_out_of_the_scaled_mix(place: SearchPaths, search: Search) -> None:
    red, star, blue = (vector_of(place, text) for text in ("red", "star", "blue"))
    image = search.index.vector(search.index.row("80"))
    assert close(Answer(1.0, search.find("star", k=20, without="red")), search, star - WITHOUT * red)
    assert close(Answer(0.0, search.find(image="80", k=20, without="red")), search, unit(image) - WITHOUT * red)
    mix = unit(0.4 * image + 0.6 * unit(star + blue))
    found = search.find(("star", "blue"), "80", alpha=0.6, k=20, without="red")
    assert close(Answer(0.6, found), search, mix - WITHOUT * red)
    assert search.find("star", k=20, without="") == search.find("star", k=20)


def test_many_queries_at_once_are_answered_as_each_alone(search: Search) -> None:
    picture = search.index.pictures[4]
    queries = [
        Query("red", k=3),
        Query(image="75", k=20),
        Query("a ring", picture, (0.2, 0.7), 5),
        Query("red", "75", (0.0, 0.5, 1.0), 1),
        Query(image=picture, k=2),
        Query(("red", "a ring"), "75", (0.4,), 6, "blue"),
    ]
    together = search.answer([search.prepare(query) for query in queries])
    for query, answers in zip(queries, together, strict=True):
        (alone,) = search.answer([search.prepare(query)])
        assert len(answers) == len(alone) == len(query.effective_alphas)
        for one, other in zip(answers, alone, strict=True):
            assert one.alpha == other.alpha
            assert len(one.hits) == query.k
            assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in other.hits], abs=1e-5)


def test_a_pool_that_is_smaller_than_k_is_found_whole(search: Search) -> None:
    assert sorted(hit.id for hit in search.find(text="red", k=200)) == sorted(search.index.ids)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "expected a text, an image, or both, got neither"),
        ({"text": " \n"}, "got neither"),
        ({"text": "caf\udce9"}, r"text: expected text in UTF-8, got 'caf\\udce9'"),
        ({"text": "red", "without": "\ud800"}, "without: expected text in UTF-8"),
        ({"text": "a" * 1001}, "text: expected at most 1,000 characters, got 1,001"),
        ({"text": "red", "k": 0}, "k: expected 1 to 200, got 0"),
        ({"text": "red", "k": 201}, "k: expected 1 to 200, got 201"),
        ({"text": "red", "alphas": ()}, "alpha: expected 1 to 101 values, got 0"),
        ({"text": "red", "alphas": (0.5,) * 102}, "alpha: expected 1 to 101 values, got 102"),
        ({"text": "red", "image": "72", "alphas": (1.5,)}, r"expected 0 \(the image alone\) to 1 .*, got 1\.5"),
        ({"text": "red", "alphas": (float("nan"),)}, "got nan"),
        ({"text": "\u200b"}, "no words"),
        ({"text": ("red", " ")}, "no words"),
        ({"text": ("red",) * 9}, "text: expected at most 8 texts, got 9"),
        ({"without": "red"}, "got neither"),
        ({"text": "red", "without": "\u200b"}, "no words"),
        ({"text": "red", "without": "a" * 1001}, "without: expected at most 1,000 characters, got 1,001"),
    ],
)
def test_invalid_queries_are_refused(search: Search, query: dict, message: str) -> None:
    with pytest.raises(BadQuery, match=message):
        search.prepare(Query(**query))


def encoded(size: tuple[int, int], format: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    colour = {"L": 100, "P": 100, "RGBA": (0, 0, 0, 255)}.get(mode)
    Image.new(mode, size, colour).save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    ("picture", "reason", "message"),
    [
        (b"", "not an image", r"expected a picture \(JPEG, PNG, WEBP, GIF, BMP\), got 0 bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", "got an SVG drawing"),
        (encoded((30, 30), "TIFF"), "not an image", "got a TIFF"),
        (encoded((200, 200))[:400], "truncated", "cannot be decoded"),
        (encoded((8000, 7000), "PNG", "1"), "too large", "at most 50,000,000 pixels, got 8,000 x 7,000"),
        (encoded((20000, 20000), "PNG", "1"), "too large", "pixels"),  # what PIL itself calls a bomb
        (bytes(10_000_001), "too large", "at most 10,000,000 bytes, got 10,000,001"),
    ],
    ids=["empty", "svg", "tiff", "truncated", "pixels", "bomb", "bytes"],
)
def test_invalid_pictures_are_refused(search: Search, picture: bytes, reason: str, message: str) -> None:
    with pytest.raises(UnusableImage, match=message) as error:
        search.prepare(Query(image=picture))
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "RGBA"), ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "L"), ("PNG", "1")]
)
def test_every_format_is_accepted(search: Search, format: str, mode: str) -> None:
    assert len(search.find(image=encoded((40, 300), format, mode))) == 10


def test_exif_orientation_is_applied(search: Search) -> None:
    upright = Image.open(io.BytesIO(search.index.pictures[2])).convert("RGB")
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    note = Image.Exif()
    note[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    lying.save(file, "PNG", exif=note)
    assert search.find(image=file.getvalue(), k=1)[0].id == search.index.ids[2]


def test_an_unknown_image_is_refused(search: Search) -> None:
    with pytest.raises(UnknownImage):
        search.find(image="nobody")


# the command line


def test_the_command_prints_ranks_and_writes_json(
    place: SearchPaths, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "found.json", tmp_path / "mine.jpg"
    picture.write_bytes(search.index.pictures[5])
    words = ["--text", "red", "--image", str(picture), "--alpha", "0", "0.5", "--k", "3", "--json", str(file)]
    assert command.main([*place.options, *words]) == 0
    shown = capsys.readouterr().out
    assert "alpha 0.5" in shown
    first, second = json.loads(file.read_text())
    assert first["alpha"] == 0.0
    assert first["hits"][0]["id"] == search.index.ids[5]
    assert [hit["id"] for hit in second["hits"]] == [hit.id for hit in search.find("red", picture.read_bytes(), k=3)]
    assert all(hit["id"] in shown for hit in second["hits"])


def test_the_command_takes_several_texts_and_one_to_leave_out(
    place: SearchPaths, search: Search, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    words = ["--text", "star", "--text", "blue", "--without", "red", "--k", "4", "--json", str(file)]
    assert command.main([*place.options, *words]) == 0
    (answer,) = json.loads(file.read_text())
    assert [hit["id"] for hit in answer["hits"]] == [
        hit.id for hit in search.find(("star", "blue"), k=4, without="red")
    ]


def test_answers_of_different_lengths_are_shown_whole() -> None:
    some = [Hit(rank, f"image {rank}", 1 / rank, 10, 10) for rank in (1, 2, 3)]
    table = command.table_of([Answer(0.0, tuple(some[:1])), Answer(0.5, ()), Answer(1.0, tuple(some))])
    assert [list(column.cells) for column in table.columns] == [
        ["1", "2", "3"],
        ["image 1", "", ""],
        ["1.000", "", ""],
        ["", "", ""],
        ["", "", ""],
        ["image 1", "image 2", "image 3"],
        ["1.000", "0.500", "0.333"],
    ]


def test_no_image_that_meets_a_filter_is_said(place: SearchPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*place.options, "--text", "red", "--filter", "width>=640", "id=birds/*"]) == 0
    shown = capsys.readouterr().out
    assert "none of the 20 images meets width>=640 id=birds/*" in shown
    assert "rank" not in shown


def test_a_small_index_is_built_without_ray(
    place: SearchPaths, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files are those of an index that is built in a process of Python."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("groundray.runtime.cluster.connect", None)  # calling it fails
    words = ["--checkpoint", place.checkpoint, "--images", place.images, "--index", str(tmp_path / "index")]
    assert command.main(words) == 0
    built = tmp_path / "index" / search.index.folder.name
    names = [*sorted(path.name for path in built.iterdir() if path.name.startswith("part-")), "compact.bin"]
    assert len(names) > 1
    for name in names:
        assert (built / name).read_bytes() == search.index.folder.read_bytes(name)
    assert len(list((tmp_path / "index").iterdir())) == 2  # the index, and position features


def test_without_a_query_the_command_builds_the_index(
    place: SearchPaths, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(place.options) == 0
    assert f"20 images in {search.index.folder}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--without", "red"], "error: expected a text, an image, or both"),
        (["--text", " "], "error: expected a text, an image, or both"),
        (["--image", "nobody"], "error: image: expected an id of one of the 20 images"),
        (["--text", "red", "--k", "1000"], "error: k: expected 1 to 200"),
        (["--text", "red", "--images", "nowhere"], r"error: expected shards at .*nowhere.*no dataset\.json"),
    ],
)
def test_invalid_arguments_exit_2(
    place: SearchPaths, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert command.main([*place.options, *words]) == 2
    assert re.search(message, capsys.readouterr().err)
