"""Answers of analogies against loops over all words, McNemar's test, and questions that cannot be answered."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from scipy.stats import binomtest

from groundray.analysis.inputs.analogy_sets import Question
from groundray.analysis.measures import directions
from groundray.analysis.measures.analogies import analogies, answered
from groundray.analysis.measures.statistics import holm
from groundray.analysis.result import Bars

WORDS = ("man", "woman", "king", "queen", "sky", "land", "car", "plane", "road", "odd")


def made(seed: int = 0) -> np.ndarray:
    """Vectors in which king - man + woman is near queen, and land - car + plane near sky; the rest is chance."""
    draw = np.random.default_rng(seed)
    rows = dict(zip(WORDS, draw.normal(size=(10, 16)), strict=True))
    rows["queen"] = rows["king"] - rows["man"] + rows["woman"] + 0.1 * rows["queen"]
    rows["sky"] = rows["land"] - rows["car"] + rows["plane"] + 0.1 * rows["sky"]
    return np.array(list(rows.values()))


ROYAL = Question("man", "woman", "king", "queen", section="family")
PLACE = Question("car", "land", "plane", "sky", ("road", "sky", "odd"))


@pytest.mark.parametrize("limit", [None, 40], ids=["one block", "blocks of a question"])
def test_answers_are_those_written_out(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit:
        monkeypatch.setattr(directions, "NUMBERS", limit)
    draw = np.random.default_rng(1)
    vectors = draw.normal(size=(12, 4))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    given = np.array([draw.permutation(12)[:4] for _ in range(15)])
    answers = np.array([1, 2, 3, 5, 6, 7, 8, 9, 10, 11])  # some words of the questions are no answers
    rows = [row for row in range(15) if given[row, 3] in answers]
    found = answered(units, given[rows, :3], given[rows, 3], answers)
    for method, own in found.items():
        for place, row in enumerate(rows):
            a, b, c, target = given[row].tolist()
            expected = reference.analogy(vectors.tolist(), a, b, c, answers.tolist(), method)
            without = [word for word in expected if word not in (a, b, c)]
            assert own.rank_with_own[place] == expected.index(target) + 1
            assert own.rank[place] == without.index(target) + 1
            assert own.answer[place] == without[0]


def test_known_answers_are_found_by_both_methods() -> None:
    found = analogies({"m": made()}, WORDS, {"mine": [ROYAL, PLACE]}, WORDS)
    by_key = {one.key: one for one in found.measures}
    assert list(by_key) == [
        "mine/3cosadd/accuracy",
        "mine/3cosadd/section/family/accuracy",
        "mine/3cosadd/section/no_section/accuracy",
        "mine/3cosadd/rank/median",
        "mine/3cosadd/own_words/accuracy",
        "mine/3cosmul/accuracy",
        "mine/3cosmul/section/family/accuracy",
        "mine/3cosmul/section/no_section/accuracy",
        "mine/3cosmul/rank/median",
        "mine/3cosmul/own_words/accuracy",
    ]
    for method in ("3cosadd", "3cosmul"):
        value = by_key[f"mine/{method}/accuracy"].values["m"]
        interval = binomtest(2, 2).proportion_ci(method="wilson")
        assert (value.value, value.low, value.high) == (1.0, pytest.approx(interval.low), pytest.approx(interval.high))
        assert by_key[f"mine/{method}/rank/median"].values["m"].value == 1
    accuracy, answers = found.tables
    assert accuracy.rows[0][:4] == ("mine", "all", 2, None)
    assert accuracy.rows[2] == ("mine", "no section", 1, pytest.approx(1 / 3), 1.0, 1.0)
    assert answers.rows == (
        ("mine", "man : woman :: king : ?", "queen", "queen", "queen"),
        ("mine", "car : land :: plane : ?", "sky", "sky", "sky"),
    )
    sets, sections = found.pictures
    assert isinstance(sets, Bars)
    assert isinstance(sections, Bars)
    assert list(sets.groups) == ["mine, 3CosAdd", "mine, 3CosMul"]
    assert sections.items == {"family": 1, "no section": 1}


def test_own_words_are_no_answers() -> None:
    """The vectors of king and queen are nearly one: without the rule, king answers its own question."""
    vectors = np.eye(10) + 0.01 * np.random.default_rng(2).normal(size=(10, 10))
    vectors[3] = vectors[2] + 0.1 * vectors[9]
    found = {one.key: one.values["m"].value for one in analogies({"m": vectors}, WORDS, {"s": [ROYAL]}, WORDS).measures}
    assert found["s/3cosadd/accuracy"] == 1
    assert found["s/3cosadd/own_words/accuracy"] == 0


def test_a_set_of_candidates_alone_needs_no_vocabulary() -> None:
    found = analogies({"m": made()}, WORDS, {"visual": [PLACE]}, ())
    assert [one.key for one in found.measures] == [
        f"visual/{method}/{what}" for method in ("3cosadd", "3cosmul") for what in ("accuracy", "rank/median")
    ]


def test_two_models_are_compared_by_mcnemars_exact_test() -> None:
    draw = np.random.default_rng(3)
    words = tuple(f"w{number}" for number in range(40))
    rows = draw.permuted(np.tile(np.arange(40), (60, 1)), axis=1)[:, :7]
    questions = [Question(*(words[at] for at in row[:4]), tuple(words[at] for at in row[3:])) for row in rows.tolist()]
    models = {name: draw.normal(size=(40, 5)) for name in ("a", "b", "c")}
    one = analogies(models, words, {"set": questions}, ()).measures[0]
    right = {}
    for name, vectors in models.items():
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        best = []
        for row in rows.tolist():
            scores = [units[word] @ (units[row[1]] - units[row[0]] + units[row[2]]) for word in row[3:]]
            best.append(int(np.argmax(scores)) == 0)
        right[name] = np.array(best)
        assert one.values[name].value == pytest.approx(right[name].mean())
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    p = []
    for first, other in pairs:
        more, fewer = int((right[first] & ~right[other]).sum()), int((right[other] & ~right[first]).sum())
        tails = sum(math.comb(more + fewer, k) for k in range(min(more, fewer) + 1)) / 2 ** (more + fewer)
        p.append(min(1.0, 2 * tails))
    assert [pair.p for pair in one.differences] == pytest.approx(holm(p))
    assert one.differences[0].value.value == pytest.approx(right["b"].mean() - right["a"].mean())


def test_questions_that_cannot_be_answered_are_counted() -> None:
    questions = [
        ROYAL,
        Question("man", "woman", "king", "king"),
        Question("man", "woman", "king", "nobody"),
        Question("car", "land", "plane", "sky", ("sky", "nowhere")),
        Question("man", "woman", "king", "odd"),
    ]
    vocabulary = [word for word in WORDS if word != "odd"]
    found = analogies(
        {"m": made()}, WORDS, {"set": questions, "none": questions[1:]}, [*vocabulary, "unknown"], {"x": 1}
    )
    assert found.measures[0].items == 1
    assert found.left_out == {
        "x": 1,
        "questions whose answer is one of their words": 2,
        "questions with a word that has no vector": 4,
        "questions whose answer is not in the vocabulary": 2,
        "sets without a question that can be answered": 1,
        "words of the vocabulary that have no vector": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "expected an analogy that can be answered, got none among 0: no set"),
        (
            {"sets": {"s": [Question("x", "y", "z", "w")]}},
            "got none among 1: 1 questions with a word that has no vector",
        ),
        ({"words": ["man"] * 10}, "each word once, got 9 again"),
        ({"vectors": {"m": np.zeros((10, 3))}}, "vectors with a direction"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analogies(**({"vectors": {"m": made()}, "words": WORDS, "sets": {"s": [ROYAL]}, "vocabulary": WORDS} | change))
