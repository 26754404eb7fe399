"""Words on their axes: scores against a decomposition written out, neighbours against a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
from search_fixtures import SearchPaths
from tokenizers import Tokenizer, models

from groundray import serve
from groundray.analysis.inputs.embedding import Embedder
from groundray.cli import image_index
from groundray.cli.command import plain_console
from groundray.image_search import word_space
from groundray.image_search.errors import BadQuery
from groundray.image_search.service import Service
from groundray.image_search.word_space import Words, WordSpace


@pytest.fixture
def space(service: Service) -> WordSpace:
    return service.space


def write_norms(folder: Path, categories: str = "", concreteness: str = "") -> str:
    folder.mkdir(exist_ok=True)
    if categories:
        (folder / "categories.csv").write_text(f"category,word,concreteness\n{categories}")
    if concreteness:
        (folder / "concreteness.csv").write_text(f"word,concreteness\n{concreteness}")
    return str(folder)


def test_words_carry_category_and_concreteness(space: WordSpace) -> None:
    words = {word.text: word for word in space.words.shown}
    assert len(words) == len(space.words.shown) == 74
    assert (words["circle"].category, words["circle"].concreteness) == ("shape", 5.0)
    assert words["idea"].category == "abstract noun"
    assert list(space.models) == ["ungrounded", "grounded"]


def test_axes_are_those_of_the_centred_vectors(place: SearchPaths, space: WordSpace) -> None:
    texts = [word.text for word in space.words.shown]
    ratings = np.array([word.concreteness for word in space.words.shown], dtype=float)
    for name, folder in (("ungrounded", "language-ungrounded"), ("grounded", "language")):
        vectors = Embedder.load(f"{place.checkpoint}/{folder}").embed(texts).astype(float)
        centred = vectors - vectors.mean(axis=0)
        _, spread, directions = np.linalg.svd(centred, full_matrices=False)
        model = space.models[name]
        for axis in range(3):
            expected = centred @ directions[axis]
            expected *= np.sign(np.corrcoef(expected, ratings)[0, 1])
            np.testing.assert_allclose(model.at[:, axis], expected, atol=1e-5)
            assert model.explained[axis] == pytest.approx((spread**2 / (spread**2).sum())[axis])


def test_a_word_is_placed_at_its_own_coordinates(space: WordSpace) -> None:
    for place, word in enumerate(space.words.shown[:5]):
        for name, landing in space.place(word.text, axes=4, k=3).items():
            np.testing.assert_allclose(landing.at, space.models[name].at[place, :4], atol=1e-4)
            assert word.text not in [near.text for near in landing.neighbours]


def test_neighbours_are_those_of_a_loop_without_the_texts_own_words(space: WordSpace) -> None:
    texts = [word.text for word in space.words.shown]
    for name, landing in space.place("striped circle", axes=2, k=8).items():
        model = space.models[name]
        vectors = model.embedder.embed(texts)
        query = model.embedder.embed(["striped circle"])[0]
        others = [row for row, text in enumerate(texts) if text not in ("striped", "circle")]
        expected = reference.ranked(vectors[others].tolist(), query.tolist(), 8)
        assert [near.cosine for near in landing.neighbours] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert [near.text for near in landing.neighbours] == [texts[others[row]] for row, _ in expected]
    assert len(space.place("red", axes=2, k=200)["grounded"].neighbours) == len(texts) - 1


def test_an_unknown_text_is_refused(space: WordSpace) -> None:
    for text in ("", "\u200b", "漢字", "red " * 600):
        with pytest.raises(BadQuery, match="expected a word or phrase that the model knows and can take whole"):
            space.place(text, axes=3, k=5)


def test_one_file_of_norms_is_enough(tmp_path: Path) -> None:
    both = Words.of_norms(write_norms(tmp_path / "a", "x,red,\ny,red,\nx,blue,2\n", "red,4\nidea,1.5\n"))
    assert [(word.text, word.category, word.concreteness) for word in both.shown] == [
        ("red", "x", 4.0),
        ("blue", "x", 2.0),
        ("idea", None, 1.5),
    ]
    rated = Words.of_norms(write_norms(tmp_path / "b", concreteness="idea,1.5\n"))
    assert [(word.text, word.category) for word in rated.shown] == [("idea", None)]
    listed = Words.of_norms(write_norms(tmp_path / "c", "x,red,\n"))
    assert [(word.text, word.concreteness) for word in listed.shown] == [("red", None)]
    (tmp_path / "d").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected norms in .*/d, one of .*; found nothing"):
        Words.of_norms(str(tmp_path / "d"))
    (tmp_path / "d" / "composition.csv").write_text("phrase,target\nred heart,rubel\n")
    with pytest.raises(FileNotFoundError, match=r"--norms: expected categories\.csv or concreteness\.csv"):
        Words.of_norms(str(tmp_path / "d"))


def test_words_with_a_category_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_space, "MAX_WORDS", 2)
    words = Words.of_norms(write_norms(tmp_path, "x,red,\n", "idea,1\nhope,1\nred,5\n"))
    assert [word.text for word in words.shown] == ["red", "idea"]
    assert words.omitted == 1


def test_unknown_words_are_counted(place: SearchPaths, tmp_path: Path) -> None:
    folder = write_norms(tmp_path, "x,red,\nx,blue,\nx,漢字,\n")
    space = WordSpace.open(place.checkpoint, folder, Tokenizer(models.WordPiece({})))
    assert [word.text for word in space.words.shown] == ["red", "blue"]
    assert space.words.omitted == 1
    with pytest.raises(ValueError, match=r"expected words that the model knows in .*, got none"):
        WordSpace.open(place.checkpoint, write_norms(tmp_path, "x,漢字,\n"), Tokenizer(models.WordPiece({})))


def test_a_single_word_explains_nothing(place: SearchPaths, tmp_path: Path) -> None:
    space = WordSpace.open(place.checkpoint, write_norms(tmp_path, "x,red,\n"), Tokenizer(models.WordPiece({})))
    for model in space.models.values():
        assert (model.explained.tolist(), model.at.tolist()) == ([0.0], [[0.0]])


def test_without_norms_the_tokenizers_words_are_shown(place: SearchPaths) -> None:
    pieces = {"[CLS]": 0, "a": 1, "red": 2, "##ed": 3, "blue": 4, ",": 5}
    space = WordSpace.open(place.checkpoint, None, Tokenizer(models.WordPiece(pieces, unk_token="[CLS]")))
    assert [word.text for word in space.words.shown] == ["red", "blue"]
    assert len(space.models["grounded"].at) == 2  # fewer words than axes


def test_serve_names_the_files_beside_the_norms_that_it_does_not_read(
    place: SearchPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    norms = write_norms(tmp_path, "x,red,\n")
    (tmp_path / "notes.csv").touch()
    options = serve.build_parser().parse_args([*place.options, "--norms", norms])
    image_index.check_inputs(options, plain_console())
    assert capsys.readouterr().out.startswith("note  notes.csv: not read, expected concreteness.csv, ")
