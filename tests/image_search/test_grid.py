"""Searches as pictures: which images at which alphas, and what is drawn of them."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import reference
from conftest import SmallWorld
from hypothesis import given
from hypothesis import strategies as st
from jpegs import encoded, smooth
from made_up import NASTY
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox
from PIL import Image
from search_fixtures import SearchPaths

from groundray import search as command
from groundray.data.image_decoder import UnusableImage
from groundray.image_search.errors import BadQuery, UnknownImage
from groundray.image_search.filters import Filter
from groundray.image_search.grid import (
    ALPHAS,
    Found,
    Grid,
    GridAnswer,
    GridQuery,
    ask,
    cell_shape,
    found_over_alpha,
)
from groundray.image_search.grid_picture import FORMATS, draw, format_of, picture, text_width, wrap
from groundray.image_search.named_image import NamedImage
from groundray.image_search.query import Answer, Hit, PreparedQuery, Search
from groundray.image_search.service import Service

NOWHERE = ["--checkpoint", "/no/such/model", "--images", "/no/such/shards"]
PHOTO = smooth(200, 120)


@pytest.fixture
def search(service: Service) -> Search:
    return service.search


@dataclass(frozen=True)
class Counted(Search):
    """A search that keeps the number of queries of each pass."""

    passes: list[int] = field(default_factory=list)

    def answer(self, queries: Sequence[PreparedQuery]) -> list[tuple[Answer, ...]]:
        self.passes.append(len(queries))
        return Search.answer(self, queries)


@pytest.fixture
def photo(tmp_path: Path) -> NamedImage:
    file = tmp_path / "photo.jpg"
    file.write_bytes(encoded(PHOTO))
    return NamedImage.read(str(file))


def hits(*ids: str) -> tuple[Hit, ...]:
    return tuple(Hit(rank, id, 1 - rank / 10, 112, 112) for rank, id in enumerate(ids, start=1))


def made(asked: GridQuery, ids: Sequence[str]) -> Grid:
    """A grid whose answers begin one image later at each alpha, or in each cell."""
    if asked.over_alpha:
        asks = [(asked.images[0].name, asked.texts[0], alpha) for alpha in asked.alphas]
    else:
        pairs = itertools.product(asked.rows, asked.columns)
        asks = [(image and image.name, text, 0.5) for image, text in pairs if image or text]
    circle = itertools.cycle(ids)
    answers = []
    for image, text, alpha in asks:
        next(circle)
        shown = list(itertools.islice(itertools.cycle(ids), len(answers), len(answers) + asked.k))
        answers.append(GridAnswer(image, text, alpha, hits(*shown)))
    colours = {
        id: encoded(Image.new("RGB", (60 + 9 * number, 70), (9 * number, 90, 40))) for number, id in enumerate(ids)
    }
    shown = {hit.id: colours[hit.id] for answer in answers for hit in answer.hits}
    return Grid(asked, tuple(answers), 41_620, tuple(encoded(PHOTO) for _ in asked.images), shown)


def asked(images: Sequence[str] = (), texts: Sequence[str] = (), k: int | None = None, *alphas: float) -> GridQuery:
    return GridQuery.of([NamedImage(name) for name in images], texts, alphas, k)


# which images at which alphas


@pytest.mark.parametrize(("image", "text", "k"), [("72", "blue star", 5), ("85", "red", 1), ("80", "a ring", 20)])
def test_each_image_is_found_at_the_alphas_of_a_loop(search: Search, image: str, text: str, k: int) -> None:
    query = asked([image], [text], k)
    found = found_over_alpha(ask(query, search).answers)
    wanted = reference.alphas_in_top(
        np.asarray(search.index.vectors, np.float64).tolist(),
        search.index.vector(search.index.row(image)).tolist(),
        search.towers.embed_texts([text])[0].tolist(),
        query.alphas,
        k,
    )
    assert {each.id: each.ranks for each in found} == {search.index.ids[row]: ranks for row, ranks in wanted.items()}


def test_an_image_that_returns_stands_once() -> None:
    answers = [
        GridAnswer("q", "w", alpha, found)
        for alpha, found in zip(
            (0.0, 0.5, 0.9, 1.0), (hits("a", "b"), hits("b", "c"), hits("c", "b"), hits("c", "a")), strict=True
        )
    ]
    assert found_over_alpha(answers) == (
        Found("a", {0: 1, 3: 2}),
        Found("b", {0: 2, 1: 1, 2: 2}),
        Found("c", {1: 2, 2: 1, 3: 1}),
    )


def test_all_cells_are_answered_in_one_pass_as_each_alone(search: Search, photo: NamedImage) -> None:
    counted = Counted(search.towers, search.index, search.nearest)
    query = GridQuery.of([NamedImage("72"), photo], ["red", "blue star"], [0.3], 4)
    grid = ask(query, counted)
    assert counted.passes == [8]
    assert [(answer.image, answer.text) for answer in grid.answers] == [
        *((None, "red"), (None, "blue star")),
        *(("72", None), ("72", "red"), ("72", "blue star")),
        *((photo.name, None), (photo.name, "red"), (photo.name, "blue star")),
    ]
    for answer in grid.answers:
        image = photo.encoded if answer.image == photo.name else answer.image
        alone = search.find(answer.text, image, 0.3, 4)
        assert [hit.id for hit in answer.hits] == [hit.id for hit in alone]
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in alone], abs=1e-5)
        assert answer.alpha == (0.3 if answer.image and answer.text else 1.0 if answer.text else 0.0)


@pytest.mark.parametrize(("images", "texts"), [(["72"], ["red"]), (["72", "80"], ["red"]), ([], ["red", "a ring"])])
def test_all_answers_leave_out_and_filter_as_each_alone(search: Search, images: list[str], texts: list[str]) -> None:
    conditions = ["id=7*", "id=8*", "id!=74"]
    query = GridQuery.of([NamedImage(name) for name in images], texts, None, 3, "star", Filter.parse(conditions))
    grid = ask(query, search)
    for answer in grid.answers:
        alone = search.find(answer.text, answer.image, answer.alpha, 3, "star", conditions)
        assert [hit.id for hit in answer.hits] == [hit.id for hit in alone]
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in alone], abs=1e-5)
    assert grid.pool == sum(id[0] in "78" and id != "74" for id in search.index.ids) < len(search.index)
    told = " ".join(said(draw(grid)))
    assert "Without star. Only id=7*, id=8*, id!=74." in told
    assert f"of {grid.pool} " in told.replace("nearest images", "images")
    with pytest.raises(BadQuery, match="without: expected at most"):
        replace(query, without="x" * 1001)


def test_thumbnails_are_those_of_the_pool_and_a_small_one_of_the_file(search: Search, photo: NamedImage) -> None:
    grid = ask(GridQuery.of([photo, NamedImage("72")], ["red"], None, 2), search)
    found = {hit.id for answer in grid.answers for hit in answer.hits}
    assert grid.thumbnails == {id: search.index.thumbnails[search.index.row(id)] for id in found}
    of_file, of_pool = grid.query_thumbnails
    assert Image.open(io.BytesIO(of_file)).size == (192, 115)
    assert of_pool == search.index.thumbnails[search.index.row("72")]


def test_an_image_of_the_pool_comes_before_a_file_of_its_name(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("72").write_bytes(encoded(PHOTO))
    Path("brought").write_bytes(encoded(PHOTO))
    for name in ("72", "brought"):
        image = NamedImage.read(name)
        assert image.encoded == encoded(PHOTO)
        assert image.query(search.index) == ("72" if name == "72" else encoded(PHOTO))
    assert NamedImage.read("72").thumbnail(search.index) == search.index.thumbnails[search.index.row("72")]
    with pytest.raises(UnknownImage, match="got 'neither'"):
        NamedImage.read("neither").thumbnail(search.index)


@pytest.mark.parametrize(
    ("images", "texts", "alphas", "used", "k"),
    [
        (1, 1, None, ALPHAS, 5),
        (1, 1, [1.0, 0.0, 0.5, 0.0], (0.0, 0.5, 1.0), 5),
        (1, 1, [0.2], (0.2,), 3),
        (2, 1, None, (0.5,), 3),
        (0, 3, None, (0.5,), 3),
        (3, 0, None, (0.5,), 3),
    ],
)
def test_defaults_of_each_kind(
    images: int, texts: int, alphas: list[float] | None, used: tuple[float, ...], k: int
) -> None:
    query = GridQuery.of([NamedImage(str(n)) for n in range(images)], [f"text {n}" for n in range(texts)], alphas)
    assert (query.alphas, query.k) == (used, k)
    assert query.over_alpha == (len(used) > 1)


@pytest.mark.parametrize(
    ("k", "shape"), [(1, (1, 1)), (3, (3, 1)), (4, (2, 2)), (5, (3, 2)), (9, (3, 3)), (10, (4, 3))]
)
def test_a_cell_has_a_line_or_a_square(k: int, shape: tuple[int, int]) -> None:
    assert cell_shape(k) == shape


@pytest.mark.parametrize(
    ("images", "texts", "alphas", "k", "message"),
    [
        (0, 0, None, None, "grid: expected images, texts, or both"),
        (1, 1, None, 21, "k: expected at most 20 images at each of 21 alphas, .*got 21"),
        (1, 1, [n / 100 for n in range(101)], 5, "k: expected at most 4 images at each of 101 alphas, .*got 5"),
        (1, 1, [n / 200 for n in range(102)], 1, "alpha: expected 1 to 101 values, got 102"),
        (1, 1, [0.0, 1.5], None, r"alpha: expected 0 .* to 1 .*, got 1\.5"),
        (2, 2, [0.0, -0.1], None, r"alpha: expected 0 .*, got -0\.1"),
        (1, 1, [0.0, float("nan")], None, "got nan"),
        (2, 2, [0.0, 1.0], None, "alpha: expected one value for a picture of 2 images by 2 texts, got 2"),
        (2, 3, None, 17, "k: expected at most 16 in each cell of 2 images by 3 texts, .*got 17"),
        (0, 20, None, 1, "grid: expected fewer images or texts, .*got 0 images by 20 texts"),
        (40, 0, None, 1, "grid: expected fewer images or texts, .*got 40 images by 0 texts"),
        (1, 1, None, 0, "k: expected 1 to 200, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    images: int, texts: int, alphas: list[float] | None, k: int | None, message: str
) -> None:
    with pytest.raises(BadQuery, match=message):
        GridQuery.of([NamedImage(str(n)) for n in range(images)], [f"text {n}" for n in range(texts)], alphas, k)


@pytest.mark.parametrize(("images", "texts", "k"), [(1, 1, 20), (2, 3, 16), (0, 19, 1), (39, 0, 1), (5, 2, 36)])
def test_the_largest_pictures_are_allowed(images: int, texts: int, k: int) -> None:
    query = asked([str(n) for n in range(images)], [f"text {n}" for n in range(texts)], k)
    assert query.k == k


# what is drawn


def said(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_over_alpha_each_image_has_a_bar_of_its_ranks() -> None:
    grid = made(asked(["q.jpg"], ["blue star"], 2, 0.0, 0.25, 1.0), ["a", "b", "c", "d", "e"])
    figure = draw(grid)
    panel, words = figure.axes[0], said(figure)
    assert len(panel.images) == 1 + 4  # the query's, and a, b, c, d
    assert words[0] == "The 2 nearest of 41,620 images at each alpha"
    assert {"q.jpg", "blue star", "alpha"} < set(words)
    first = words.index("alpha")
    assert words[first : first + 4] == ["alpha", "0", "0.25", "1"]
    # the ranks of an image, then its id: a is found at the first alpha, b at the first and the second ...
    assert words[first + 4 :] == ["1", "a", "2", "1", "b", "2", "1", "c", "2", "d"]
    cells = [patch for patch in panel.patches if type(patch) is Rectangle and patch.get_height() == 0.3]
    columns = {number: cells[0].get_x() + number * cells[0].get_width() for number in range(3)}
    assert [patch.get_x() for patch in cells] == pytest.approx([columns[number] for number in (0, 0, 1, 1, 2, 2)])
    assert cells[0].get_facecolor() == cells[2].get_facecolor() != cells[1].get_facecolor()  # ranks 1, 1 and 2


@pytest.mark.parametrize("texts", [["red"], ["red", "a ring"]])
def test_a_picture_says_and_shows_what_its_images_are_ranked_by(texts: list[str]) -> None:
    by_vectors = made(asked(["q"], texts, 2), ["a", "b", "c"])
    again = tuple(replace(hit, match=2 + hit.score) for hit in by_vectors.answers[0].hits)
    ranked = replace(by_vectors, answers=tuple(replace(answer, hits=again) for answer in by_vectors.answers))
    for grid, order, score in ((by_vectors, False, "0.90"), (ranked, True, "2.90")):
        told = " ".join(said(draw(grid)))
        assert ("by their match" in told or "id and its match" in told) == order
        assert (f" {score} " in f"{told} ") == (len(texts) > 1)


def test_a_picture_may_show_that_nothing_was_found() -> None:
    for texts in (["red"], ["red", "a ring"]):
        full = made(asked(["q"], texts, 2), ["a", "b", "c"])
        none = replace(full, answers=tuple(replace(answer, hits=()) for answer in full.answers), thumbnails={})
        assert len(draw(none).axes[0].images) == 1


def test_narrow_bars_have_no_ranks_and_fewer_alphas() -> None:
    figure = draw(made(asked(["q"], ["w"], 2, *(n / 100 for n in range(101))), [f"id {n}" for n in range(7)]))
    words = said(figure)
    assert "1" not in words[: words.index("alpha")]
    labelled = [word for word in words if re.fullmatch(r"[01](\.\d+)?", word)]
    assert labelled == [f"{n / 20:g}" for n in range(21)] * (len(labelled) // 21)


def test_by_words_each_cell_has_its_images_below_its_word() -> None:
    grid = made(asked(["q1", "q2"], ["red", "blue star"], 2), ["a", "b", "c"])
    figure = draw(grid)
    panel = figure.axes[0]
    assert len(panel.images) == 2 + 8 * 2
    assert said(figure)[0] == "The 2 nearest images of 41,620 at alpha 0.5"
    assert {"q1", "q2", "red", "blue star", "image alone", "a", "0.90"} < set(said(figure))
    at = {text.get_text(): text.get_position() for text in panel.texts}
    assert at["image alone"][0] < at["red"][0] < at["blue star"][0]
    assert at["words alone"][1] < at["q1"][1] < at["q2"][1]


def test_words_alone_are_one_row_without_images() -> None:
    figure = draw(made(asked([], ["red", "blue"], 1), ["a", "b"]))
    assert len(figure.axes[0].images) == 2
    assert said(figure)[0] == "The nearest image of 41,620"
    assert "image alone" not in said(figure)


LONG_ID = "train/n01440764_tench/ILSVRC2012_val_00000293_a_copy_of_1417295167_5299df6db8.JPEG"
LONG_TEXT = "a large blue circle above a striped orange star, " * 8


@pytest.mark.thorough
@pytest.mark.parametrize(
    "query",
    [
        asked(["q"], ["w"]),
        asked([LONG_ID], [LONG_TEXT], 6),
        asked(["q"], [NASTY], 3, 0.0, 0.5),
        asked(["q"], ["x" * 300], 4, *(n / 100 for n in range(101))),
        asked(["q"], ["w"], 2, *(n / 30 for n in range(31))),
        asked(["q"], ["w"], 3, 0.5),
        asked([LONG_ID, "q"], [LONG_TEXT, "w", NASTY], 5),
        asked([], ["red", LONG_TEXT], 9),
        asked([LONG_ID, "q"], [], 3),
        asked([f"q{n}" for n in range(3)], [f"word {n}" for n in range(9)], 1),
    ],
    ids=[
        "default",
        "long",
        "few alphas",
        "many alphas",
        "thirds",
        "one cell",
        "cells",
        "texts",
        "images",
        "many words",
    ],
)
def test_nothing_overlaps_or_leaves_the_picture(query: GridQuery) -> None:
    ids = [LONG_ID, NASTY, *(f"{number:012d}.jpg" for number in range(7))]
    figure = draw(made(query, ids))
    figure.draw_without_rendering()
    panel, sheet = figure.axes[0], Bbox.from_bounds(0, 0, *(figure.get_size_inches() * figure.dpi))
    texts = [text.get_window_extent() for text in panel.texts if text.get_text()]
    pictures = [image.get_window_extent() for image in panel.images]
    for box in (*texts, *pictures):
        assert sheet.x0 <= box.x0 <= box.x1 <= sheet.x1
        assert sheet.y0 <= box.y0 <= box.y1 <= sheet.y1
    for one, other in itertools.combinations(pictures, 2):
        assert not one.overlaps(other)
    for one, other in itertools.chain(itertools.combinations(texts, 2), itertools.product(texts, pictures)):
        shared = Bbox.intersection(one, other)
        # a box has room for letters that no line here has, such as those with accents
        assert shared is None or min(shared.width, shared.height) < 3


def test_labels_are_whole() -> None:
    words = "".join(said(draw(made(asked([LONG_ID], [LONG_TEXT, "w"], 2), [LONG_ID, NASTY, "c"]))))
    for label in (LONG_ID, LONG_TEXT, NASTY):
        assert "".join(label.split()) in words.replace(" ", "")


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=60), st.floats(0.3, 4))
def test_lines_are_as_wide_as_given_and_lose_nothing(text: str, width: float) -> None:
    lines = wrap(text, width, 9)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(text_width(line, 9) <= width or len(line) == 1 for line in lines)


def test_long_names_are_broken_where_a_part_ends() -> None:
    assert wrap("photos/1187435567_18173c148b.jpg", 1.2, 8.5) == ["photos/", "1187435567_", "18173c148b.jpg"]


# files


@pytest.mark.parametrize(("path", "format"), [("a.png", "png"), ("s3://b/x.y/c.SVG", "svg"), ("~/a.b.pdf", "pdf")])
def test_the_ending_names_the_format(path: str, format: str) -> None:
    assert format_of(path) == format


@pytest.mark.parametrize("path", ["a.jpg", "png", "a.png/b", "a.png.gz", ".", ""])
def test_other_endings_are_refused(path: str) -> None:
    if path == "png":
        path = "folder.d/png_file"
    with pytest.raises(BadQuery, match=r"grid: expected a file that ends with \.png, \.svg, \.pdf, got"):
        format_of(path)


@pytest.mark.parametrize("format", FORMATS)
def test_equal_grids_give_equal_files(format: str) -> None:
    grid = made(asked(["q"], ["w"], 2, 0.0, 1.0), ["a", "b", "c"])
    content = picture(grid, format_of(f"x.{format}"))
    assert content == picture(grid, format_of(f"x.{format}"))
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert content.startswith(begins[format])
    if format == "svg":
        assert content.count(b"<image ") == 1 + 3


# the command line


def test_the_command_draws_one_query_over_alpha(
    place: SearchPaths, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, file = tmp_path / "new" / "over.png", tmp_path / "over.json"
    words = ["--image", "72", "--text", "blue star", "--grid", str(drawn), "--json", str(file)]
    assert command.main([*place.options, *words]) == 0
    grid = ask(asked(["72"], ["blue star"]), search)
    answers = json.loads(file.read_text())
    assert [answer["alpha"] for answer in answers] == list(ALPHAS)
    assert [[hit["id"] for hit in answer["hits"]] for answer in answers] == [
        [hit.id for hit in answer.hits] for answer in grid.answers
    ]
    assert {(answer["image"], answer["text"]) for answer in answers} == {("72", "blue star")}
    assert drawn.read_bytes() == picture(grid, "png")
    assert f"{drawn}  " in capsys.readouterr().out.replace("\n", "")
    assert [path.name for path in drawn.parent.iterdir()] == ["over.png"]


def test_the_command_draws_images_by_words(place: SearchPaths, photo: NamedImage, tmp_path: Path) -> None:
    drawn, file = tmp_path / "cells.svg", tmp_path / "cells.json"
    words = ["--image", "72", "--image", photo.name, "--text", "red", "--text", "a ring", "--k", "1"]
    words += ["--without", "star", "--filter", "id!=73", "--filter", "id=7*"]
    assert command.main([*place.options, *words, "--grid", str(drawn), "--json", str(file)]) == 0
    answers = json.loads(file.read_text())
    assert len(answers) == 8
    assert {hit["id"][0] for answer in answers for hit in answer["hits"]} == {"7"}
    assert (answers[-1]["image"], answers[-1]["text"], answers[-1]["alpha"]) == (photo.name, "a ring", 0.5)
    assert all(len(answer["hits"]) == 1 for answer in answers)
    assert drawn.read_text().count("<image ") == 2 + 8


def test_a_picture_is_written_to_a_store(
    place: SearchPaths, tmp_path: Path, anywhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from groundray.storage.folder import Folder

    assert command.main([*place.options, "--text", "red", "--k", "1", "--grid", f"{anywhere}/found.pdf"]) == 0
    assert Folder.at(anywhere).files() == ["found.pdf"]
    assert Folder.at(anywhere).read_bytes("found.pdf").startswith(b"%PDF")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "x.png"], "error: grid: expected images, texts, or both"),
        (["--grid", "x.gif", "--text", "red"], r"error: grid: expected a file that ends with \.png, \.svg, \.pdf"),
        (["--grid", "FOLDER.png", "--text", "red"], "error: grid: expected a file, got the folder"),
        (["--grid", "x.png", "--text", " "], "error: expected a text, an image, or both"),
        (["--grid", "x.png", "--text", "red", "--filter", "wide"], "error: filter: expected a condition"),
        (["--grid", "x.png", "--text", "red", "--rerank", "-1"], "error: rerank: expected 0"),
        (
            ["--grid", "x.png", "--text", "red", "--image", "BROKEN"],
            "error: image .*broken.jpg: .*cannot be decoded",
        ),
        (
            ["--grid", "x.png", "--text", "red", "--image", "NO_IMAGE"],
            "error: image .*none.jpg: file: expected a picture",
        ),
        (["--grid", "x.png", "--text", "red", "--image", "72", "--k", "21"], "error: k: expected at most 20"),
        (
            ["--grid", "x.png", "--text", "red", "--image", "72", "--alpha", "0", "2"],
            "error: alpha: expected 0 .*got 2",
        ),
        (["--image", "72", "--image", "80"], "error: --image: expected one, got 2: .*--grid FILE"),
        (["--text", "red", "--image", "BROKEN"], "error: image .*broken.jpg: .*cannot be decoded"),
        (["--text", "red", "--image", "~nobody-here"], "error: ~nobody-here: expected ~ or ~USER"),
    ],
)
def test_bad_input_fails_before_anything_is_loaded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FOLDER.png").mkdir()
    Path("broken.jpg").write_bytes(encoded(PHOTO)[:900])
    Path("none.jpg").write_bytes(b"a text")
    paths = {"BROKEN": "broken.jpg", "NO_IMAGE": "none.jpg"}
    assert command.main([*NOWHERE, *(paths.get(word, word) for word in words)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("x.png").exists()


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    file = tmp_path / "huge.bmp"
    file.write_bytes(bytes(10_000_001))
    with pytest.raises(UnusableImage, match=r"image .*huge\.bmp: file: expected at most 10,000,000 bytes") as error:
        NamedImage.read(str(file))
    assert error.value.reason == "too large"


def test_a_file_that_cannot_be_used_stands_in_no_way_of_an_image_of_the_pool(
    place: SearchPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids are often paths in the folder that the command runs in: of a TIFF, or of more than an upload may have."""
    monkeypatch.chdir(tmp_path)
    Path("72").write_bytes(b"no picture")
    assert NamedImage.read("72", place.images) == NamedImage("72")
    assert command.main([*place.options, "--image", "72", "--k", "1", "--json", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text())[0]["hits"][0]["id"] == "72"
    for images in (None, str(tmp_path)):
        with pytest.raises(UnusableImage, match="image 72: file: expected a picture"):
            NamedImage.read("72", images)


def test_a_failed_search_leaves_the_former_picture(
    place: SearchPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, file = tmp_path / "found.png", tmp_path / "found.json"
    drawn.write_bytes(b"before")
    words = ["--image", "nobody", "--text", "red", "--grid", str(drawn), "--json", str(file)]
    assert command.main([*place.options, *words]) == 2
    assert "expected an id of one of the 20 images" in capsys.readouterr().err
    assert drawn.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["found.png"]


def test_a_pool_without_images_names_the_repair(
    place: SearchPaths, world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", place.checkpoint, "--images", str(world.shards / "text" / "val"), "--index", place.index]
    assert command.main([*words, "--text", "red", "--grid", str(tmp_path / "x.png")]) == 2
    said = capsys.readouterr().err
    assert "got kind 'text', which has no images: `python -m groundray.prepare images`" in said
    assert not (tmp_path / "x.png").exists()
