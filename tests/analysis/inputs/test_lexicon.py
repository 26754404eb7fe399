"""The words that several models know, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis.models import bert, word_pieces

from groundray.analysis.inputs.embedding import Embedder
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.word_vectors import WordVectors

TEXTS = ["zebra", "giraffe", "red fruit", "zebra", "horse", "bear", "giraffe"]


@pytest.fixture(scope="module")
def models() -> dict[str, Embedder]:
    return {
        "whole": Embedder("whole", bert(), word_pieces()),
        "small": Embedder("small", bert(seed=1), word_pieces(("zebra", "horse", "red", "fruit"))),
    }


def test_every_model_has_the_same_texts_once(models: dict[str, Embedder]) -> None:
    lexicon = Lexicon.of(models, TEXTS)
    assert list(lexicon.row_of) == ["zebra", "red fruit", "horse"]
    assert lexicon.unknown == {"whole": {"giraffe"}, "small": {"giraffe", "bear"}}
    for name, model in models.items():
        assert np.array_equal(lexicon.vectors[name], model.embed(["zebra", "red fruit", "horse"]))


def test_an_analysis_takes_its_rows_and_hears_what_is_left_out(models: dict[str, Embedder]) -> None:
    lexicon = Lexicon.of(models, TEXTS)
    taken = lexicon.select(["horse", "bear", "zebra", "bear", "horse"])
    assert taken.rows.tolist() == [0, 2, 4]
    assert taken.left_out == {"words out of vocabulary (small)": 1}
    for name, vectors in taken.vectors.items():
        assert np.array_equal(vectors, lexicon.vectors[name][[2, 0, 2]])
    nothing = lexicon.select(["giraffe"])
    assert nothing.vectors["whole"].shape == (0, 16)
    assert nothing.left_out == {"words out of vocabulary (whole)": 1, "words out of vocabulary (small)": 1}
    with pytest.raises(KeyError, match="texts that the lexicon was made of, got 'photo'"):
        lexicon.select(["zebra", "photo"])


def test_a_model_that_narrows_all_figures_is_named(models: dict[str, Embedder]) -> None:
    (note,) = Lexicon.of(models, TEXTS).notes
    assert note.startswith("small knows 3 of 5 words and phrases: the figures of all models are over the 3 that all")
    assert Lexicon.of({"whole": models["whole"]}, TEXTS).notes == ()  # giraffe is no model's word
    ten = [*["zebra", "horse", "red", "fruit"], *(f"red {'horse ' * times}" for times in range(1, 6)), "bear"]
    assert Lexicon.of(models, ten).notes == ()  # nine of ten
    assert Lexicon({}, {}, {}).notes == ()


def test_nothing_to_compare_is_an_error(models: dict[str, Embedder]) -> None:
    with pytest.raises(ValueError, match="at least one model, got none"):
        Lexicon.of({}, TEXTS)
    with pytest.raises(ValueError, match="at least one word, got none"):
        Lexicon.of(models, [])
    with pytest.raises(ValueError, match=r"none among 2, as 'bear': whole knows 1, small knows 0$"):
        Lexicon.of(models, ["bear", "giraffe"])


def test_a_model_that_knows_no_word_says_why(models: dict[str, Embedder], tmp_path: Path) -> None:
    (tmp_path / "zero.txt").write_text("zebra 0 0\nhorse nan 1\n")
    both = {"whole": models["whole"], "zero": WordVectors(tmp_path / "zero.txt")}
    with pytest.raises(
        ValueError, match=r"zero knows 0; zero: 1 words whose numbers are all 0 .* line 1; zero: 1 .*line 2"
    ):
        Lexicon.of(both, ["zebra", "horse"])
