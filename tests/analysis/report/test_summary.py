"""The summary of a report: its sentences say what the measures say."""

from __future__ import annotations

import math
import re

import pytest

from groundray.analysis.report.summary import draw, summarize
from groundray.analysis.result import Analysis, Difference, Measure, Value


def measure(key: str, values: dict[str, Value], *differences: Difference, published: dict[str, float] | None = None):
    return Measure(key, key, 12, values, differences, published or {})


def numbers(sentence: str) -> list[float]:
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r"[\N{MINUS SIGN}]?\d*\.\d+", sentence)]


PC1 = measure(
    "pc1/words/pearson",
    {"text-only": Value(0.4, 0.3, 0.5), "grounded": Value(0.6, 0.5, 0.7)},
    Difference("text-only", "grounded", Value(0.2, 0.1, 0.3)),
    published={"grounded": 0.66},
)
RANK = measure(
    "rank/median",
    {"text-only": Value(4.0, 1.0, 9.0), "grounded": Value(6.5, 2.0, 9.0)},
    Difference("text-only", "grounded", Value(2.5, -1.0, 5.0), p=0.25),
)
MODELS = ("ungrounded", "text-only", "grounded")


def test_a_sentence_holds_figures_difference_interval_and_verdict() -> None:
    summary = summarize([Analysis("axes", "", (PC1,)), Analysis("composition", "", (RANK,))], MODELS)
    assert (summary.control, summary.treatment) == ("text-only", "grounded")
    axis, rank = summary.sentences
    assert numbers(axis) == [0.6, 0.4, 0.2, 0.1, 0.3]
    assert "higher" in axis
    assert "significantly better" in axis
    assert numbers(rank) == [6.5, 4.0, 2.5, -1.0, 5.0, 0.25]
    assert "higher" in rank
    assert "not significant" in rank


def test_a_difference_is_found_in_either_order() -> None:
    reverse = measure(
        "f1/all/median",
        {"grounded": Value(0.3), "text-only": Value(0.5)},
        Difference("grounded", "text-only", Value(0.2, 0.1, 0.4), p=0.0004),
    )
    (sentence,) = summarize([Analysis("norms", "", (reverse,))], ("grounded", "text-only")).sentences
    assert numbers(sentence) == [0.3, 0.5, 0.2, -0.4, -0.1, 0.001]
    assert "lower" in sentence
    assert "significantly worse" in sentence


@pytest.mark.parametrize(
    ("models", "control", "treatment"),
    [
        (("ungrounded", "grounded"), "ungrounded", "grounded"),
        (("text-only", "relational"), "text-only", "relational"),
        (("bert", "minilm"), "bert", "minilm"),
        (("minilm",), None, "minilm"),
        ((), None, None),
    ],
)
def test_control_and_treatment(models: tuple[str, ...], control: str | None, treatment: str | None) -> None:
    summary = summarize([], models)
    assert (summary.control, summary.treatment) == (control, treatment)
    assert len(summary.sentences) == 1
    assert summary.rows == ()


def test_one_model_is_summarized_without_a_comparison() -> None:
    alone = measure("pc1/words/pearson", {"minilm": Value(0.5, 0.4, 0.6)})
    summary = summarize([Analysis("axes", "", (alone,))], ("minilm",))
    assert "no control" in summary.sentences[0]
    assert numbers(summary.sentences[1]) == [0.5, 0.4, 0.6]


def test_a_figure_that_is_not_finite_is_not_compared() -> None:
    odd = measure("pc1/words/pearson", {"text-only": Value(math.nan), "grounded": Value(0.5)})
    (sentence,) = summarize([Analysis("axes", "", (odd,))], MODELS).sentences
    assert numbers(sentence) == [0.5]
    draw(summarize([Analysis("axes", "", (odd,))], MODELS), MODELS)


def test_there_are_at_most_five_sentences_and_a_panel_a_row() -> None:
    keys = {
        "axes": ("pc1/words/pearson", "pc1/categories/pearson", "pc2/words/pearson"),
        "norms": ("f1/all/median", "f1/visual/median"),
        "categories": ("silhouette/rest/median",),
        "similarity": ("simlex-999/spearman",),
        "retrieval": ("grounding/text_to_image/recall_at_10",),
    }
    values = {"text-only": Value(0.4), "grounded": Value(0.6)}
    analyses = [Analysis(name, "", tuple(measure(key, values) for key in some)) for name, some in keys.items()]
    summary = summarize(analyses, MODELS)
    assert len(summary.sentences) == 5
    assert len(summary.rows) == 7
    assert len(draw(summary, MODELS).axes) == 7
