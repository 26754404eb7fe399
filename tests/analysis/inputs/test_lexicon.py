"""The words that several models know, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from analysis.models import bert, word_pieces

from groundray.analysis.inputs.embedding import Embedder
from groundray.analysis.inputs.lexicon import Coverage, KnownTexts, Lexicon
from groundray.analysis.inputs.text_model import TextModel
from groundray.analysis.inputs.word_vectors import WordVectors

TEXTS = ["zebra", "giraffe", "red fruit", "zebra", "horse", "bear", "giraffe"]


@pytest.fixture(scope="module")
def models() -> dict[str, Embedder]:
    return {
        "whole": Embedder("whole", bert(), word_pieces()),
        "small": Embedder("small", bert(seed=1), word_pieces(("zebra", "horse", "red", "fruit"))),
    }


def lexicon_of(models: Mapping[str, TextModel], texts: Sequence[str], min_coverage: float = 0.0) -> Lexicon:
    return KnownTexts.of(models, texts).among(texts, min_coverage)[0]


def test_every_model_has_the_same_texts_once(models: dict[str, Embedder]) -> None:
    lexicon = lexicon_of(models, TEXTS)
    assert list(lexicon.row_of) == ["zebra", "red fruit", "horse"]
    assert lexicon.unknown == {"whole": {"giraffe"}, "small": {"giraffe", "bear"}}
    for name, model in models.items():
        assert np.allclose(lexicon.vectors[name], model.embed(["zebra", "red fruit", "horse"]), atol=1e-6)


def test_an_analysis_of_some_texts_has_the_vectors_of_those(models: dict[str, Embedder]) -> None:
    known = KnownTexts.of(models, TEXTS)
    lexicon, absent = known.among(["bear", "horse", "giraffe", "horse"], 0.0)
    assert (list(lexicon.row_of), absent) == (["horse"], {})
    assert lexicon.unknown == {"whole": {"giraffe"}, "small": {"bear", "giraffe"}}
    for name in models:
        whole = known.vectors[name][list(np.flatnonzero(known.known[name])).index(known.texts.index("horse"))]
        assert np.array_equal(lexicon.vectors[name], whole[None])


@pytest.mark.parametrize(("min_coverage", "compared"), [(0.0, True), (0.75, True), (0.76, False), (1.0, False)])
def test_a_model_that_knows_too_few_texts_is_not_compared(
    models: dict[str, Embedder], min_coverage: float, compared: bool
) -> None:
    """`small` knows three of the four texts that `whole` knows."""
    lexicon, absent = KnownTexts.of(models, TEXTS).among(TEXTS, min_coverage)
    assert list(lexicon.vectors) == ["whole", "small"] if compared else ["whole"]
    assert list(lexicon.row_of) == ["zebra", "red fruit", "horse", *([] if compared else ["bear"])]
    assert absent == ({} if compared else {"small": "3 of 5"})
    assert len(lexicon.vectors["whole"]) == len(lexicon.row_of)


def test_an_analysis_takes_its_rows_and_hears_what_is_left_out(models: dict[str, Embedder]) -> None:
    lexicon = lexicon_of(models, TEXTS)
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


def test_a_model_that_narrows_figures_or_is_left_out_is_named(models: dict[str, Embedder]) -> None:
    known = KnownTexts.of(models, TEXTS)
    assert lexicon_of(models, TEXTS).narrowing == {"small": "3 of 5"}
    kept, left_out = Coverage(0.0), Coverage(0.9)
    for coverage in (kept, left_out):
        for name in ("axes", "norms"):
            coverage.lexicon(name, known, TEXTS)
        coverage.lexicon("similarity", known, ["zebra", "horse"])
    (note,) = kept.notes
    assert note.startswith("small narrows the figures of all models")
    assert "of axes (3 of 5), norms (3 of 5):" in note
    (note,) = left_out.notes
    assert note.startswith("small knows fewer than 90% of the words and phrases")
    assert "of axes (3 of 5), norms (3 of 5):" in note
    assert not lexicon_of({"whole": models["whole"]}, TEXTS).narrowing  # giraffe is no model's word
    ten = [*["zebra", "horse", "red", "fruit"], *(f"red {'horse ' * times}" for times in range(1, 6)), "bear"]
    assert not lexicon_of(models, ten).narrowing  # nine of ten
    assert Coverage().lexicon("retrieval", KnownTexts((), {}, {}), ()).row_of == {}


def test_nothing_to_compare_is_an_error(models: dict[str, Embedder]) -> None:
    with pytest.raises(ValueError, match="at least one model, got none"):
        lexicon_of({}, TEXTS)
    with pytest.raises(ValueError, match="at least one word, got none"):
        lexicon_of(models, [])
    with pytest.raises(ValueError, match=r"none among 2, as 'bear': whole knows 1, small knows 0$"):
        lexicon_of(models, ["bear", "giraffe"])


def test_a_model_that_knows_no_word_says_why(models: dict[str, Embedder], tmp_path: Path) -> None:
    (tmp_path / "zero.txt").write_text("zebra 0 0\nhorse nan 1\n")
    both = {"whole": models["whole"], "zero": WordVectors(tmp_path / "zero.txt")}
    with pytest.raises(
        ValueError, match=r"zero knows 0; zero: 1 words whose numbers are all 0 .* line 1; zero: 1 .*line 2"
    ):
        lexicon_of(both, ["zebra", "horse"])
