"""Ranks of targets by hand, with and without a phrase's own words; ties; through images; the published phrases."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from groundray.analysis.inputs import published
from groundray.analysis.measures import directions
from groundray.analysis.measures.composition import (
    NEIGHBOURS,
    PICTURED,
    ROUNDING,
    before_and_after,
    composition,
    ranked,
)
from groundray.analysis.measures.proportion import proportion_of
from groundray.analysis.result import Analysis, Lists

WORDS = ("horse", "zebra", "striped", "mare", "apple")
# cosines with (1, 0): 1, .8, .9, .6, 0
PLACES = np.array([[2.0, 0], [4, 3], [0.9, np.sqrt(1 - 0.81)], [3, -4], [0, 1]])
PHRASE = np.array([[5.0, 0]])


def rows(analysis: Analysis, title: str) -> tuple[tuple, ...]:
    (found,) = [one for one in analysis.tables if one.title == title]
    return found.rows


def values(analysis: Analysis, model: str = "m") -> dict[str, float]:
    return {one.key: one.values[model].value for one in analysis.measures}


def test_the_target_is_ranked_with_and_without_the_phrases_own_words() -> None:
    """Zebra is third of all five words; the nearer two, horse and striped, are the phrase's own."""
    found = composition({"m": PHRASE}, {"m": PLACES}, ["Striped horse"], ["zebra"], WORDS)
    assert values(found) == pytest.approx(
        {
            "rank/median": 3,
            "rank/within_3": 1,
            "rank/within_10": 1,
            "cosine/mean": 0.8,
            "without_own_words/rank/median": 1,
            "without_own_words/rank/within_3": 1,
            "without_own_words/rank/within_10": 1,
        }
    )
    (table,) = [table for table in found.tables if table.title == "Rank of each target"]
    assert table.columns == ("phrase", "target", "m", "m, without the phrase's words")
    assert table.rows == (("Striped horse", "zebra", 3, 1),)
    near = rows(found, "Words nearest to each phrase")
    order = ["horse", "striped", "zebra", "mare", "apple"]
    assert [row[2:4] for row in near] == list(enumerate(order, start=1))
    assert [row[4] for row in near] == pytest.approx([1, 0.9, 0.8, 0.6, 0])
    found = composition({"m": PHRASE}, {"m": PLACES}, ["quick horse"], ["mare"], WORDS)
    assert rows(found, "Rank of each target")[0][2:] == (4, 3)


def listed(picture: Lists, model: str) -> list[tuple[str, int, bool]]:
    return [(one.text, one.rank, one.marked) for one in picture.lists[model]]


def test_a_picture_sets_the_nearest_words_before_beside_those_after() -> None:
    """The target ranks last of twenty words before, and first after. Before, it follows the eight nearest words."""
    words = [f"w{number:02d}" for number in range(20)]
    angles = np.linspace(0, 1.5, 20)
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    models = {"ungrounded": fan, "text-only": fan[::-1], "grounded": fan[::-1], "other": fan}
    of_phrases = dict.fromkeys(models, PHRASE)
    found = composition(of_phrases, models, ["striped horse"], ["w19"], words, images={"striped horse": (b"a", b"b")})
    (picture,) = found.pictures
    assert isinstance(picture, Lists)
    assert (picture.key, list(picture.lists)) == ("composition/01-striped_horse", ["ungrounded", "grounded"])
    nearest = [(f"w{number:02d}", number + 1, False) for number in range(NEIGHBOURS)]
    assert listed(picture, "ungrounded") == [*nearest, ("w19", 20, True)]
    after = [("w19", 1, True), *((f"w{19 - place:02d}", place + 1, False) for place in range(1, NEIGHBOURS))]
    assert listed(picture, "grounded") == after
    assert picture.images == (b"a", b"b")
    assert "Pictures" not in found.about


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (("ungrounded", "text-only", "grounded", "relational", "glove"), ("ungrounded", "grounded")),
        (("text-only", "relational"), ("text-only", "relational")),
        (("glove", "minilm", "bert"), ("glove", "bert")),
        (("ungrounded", "glove"), ("ungrounded", "glove")),
        (("glove", "grounded"), ("glove", "grounded")),
        (("grounded",), ()),
    ],
)
def test_the_models_of_a_picture(models: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert before_and_after(models) == expected


def test_no_more_than_the_first_phrases_have_a_picture() -> None:
    phrases = [f"phrase {number}" for number in range(PICTURED + 2)]
    models = {"m": PLACES, "n": PLACES[::-1]}
    vectors = np.repeat(PHRASE, len(phrases), axis=0)
    found = composition(dict.fromkeys(models, vectors), models, phrases, ["zebra"] * len(phrases), WORDS)
    assert [one.key for one in found.pictures] == [
        f"composition/{number + 1:02d}-phrase_{number}" for number in range(PICTURED)
    ]
    assert f"Pictures: of the first {PICTURED} phrases." in found.about
    assert not composition({"m": vectors}, {"m": PLACES}, phrases, ["zebra"] * len(phrases), WORDS).pictures


def test_ties_stand_before_the_target() -> None:
    """A model that finds every word alike finds nothing."""
    alike = np.repeat(PLACES[:1], 5, axis=0) * np.arange(1, 6)[:, None]  # rounding of their lengths is no difference
    found = composition({"m": PHRASE}, {"m": alike}, ["a"], ["zebra"], WORDS)
    assert values(found)["rank/median"] == 5


@given(seed=st.integers(0, 10_000), count=st.integers(3, 8))
@settings(deadline=None, max_examples=30)
def test_ranks_are_those_of_sorting(seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    vocabulary = [f"w{number}" for number in range(20)]
    phrases = [f"w{one} w{other}" for one, other in draw.integers(10, size=(count, 2))]
    targets = [f"w{one}" for one in draw.integers(10, 20, size=count)]
    P, W = draw.normal(size=(count, 4)), draw.normal(size=(20, 4))
    found = composition({"m": P}, {"m": W}, phrases, targets, vocabulary)
    for row, (phrase, target, rank, without_own) in enumerate(rows(found, "Rank of each target")):
        cosine = {
            word: P[row] @ W[place] / np.linalg.norm(P[row]) / np.linalg.norm(W[place])
            for place, word in enumerate(vocabulary)
        }
        order = sorted(cosine, key=lambda word: -cosine[word])
        assert rank == order.index(target) + 1
        assert without_own == [word for word in order if word not in phrase.split()].index(target) + 1
        near = [line[3] for line in rows(found, "Words nearest to each phrase")[row * 8 : row * 8 + 8]]
        assert near == order[:8]
    ranks = [row[2] for row in rows(found, "Rank of each target")]
    assert values(found)["rank/median"] == np.median(ranks)
    assert values(found)["rank/within_3"] == pytest.approx(np.mean([rank <= 3 for rank in ranks]))
    (within,) = (one for one in found.measures if one.key == "rank/within_3")
    assert list(within.values.values()) == [proportion_of(values(found)["rank/within_3"], len(ranks))]
    others = [row[3] for row in rows(found, "Rank of each target")]
    assert values(found)["without_own_words/rank/median"] == np.median(others)


@pytest.mark.parametrize("numbers", [1, 60, 2**21])
@pytest.mark.parametrize("count", [3, 8, 100])
def test_words_in_blocks_are_those_of_a_whole_sort(monkeypatch: pytest.MonkeyPatch, numbers: int, count: int) -> None:
    """Cosines are -1, 0 or 1, so that most words are as near as others: the first of them stand first."""
    monkeypatch.setattr(directions, "NUMBERS", numbers)
    draw = np.random.default_rng(count)
    P, W = (np.eye(3)[draw.integers(3, size=many)] * draw.choice([-1.0, 1.0], (many, 1)) for many in (12, count))
    targets = draw.integers(count, size=12)
    own = draw.random((12, count)) < 0.2
    own[np.arange(12), targets] = False
    found = ranked(P, W.__getitem__, count, targets, [(phrase, word) for phrase, word in np.argwhere(own).tolist()])
    ranks, without, order = reference.dense_ranks(P @ W.T, targets, own, ROUNDING, NEIGHBOURS)
    assert (found.rank.tolist(), found.rank_without_own.tolist()) == (ranks, without)
    assert [[word for word, _ in near] for near in found.nearest] == order
    assert [[cosine for _, cosine in near] for near in found.nearest] == [
        (P @ W.T)[phrase, words].tolist() for phrase, words in enumerate(order)
    ]
    assert found.cosine.tolist() == [(P @ W.T)[phrase, word] for phrase, word in enumerate(targets)]


def test_through_images_texts_are_near_that_suit_the_same_images() -> None:
    """Rows are correlated over images: what suits a text on average does not count."""
    draw = np.random.default_rng(2)
    words, phrases = draw.normal(size=(6, 30)), draw.normal(size=(3, 30))
    words += np.array([0, 50, -50, 5, 9, 2])[:, None]
    vocabulary, targets = list("abcdef"), ["b", "c", "d"]
    found = composition({"m": phrases}, {"m": words}, ["x", "y", "z"], targets, vocabulary, through_images=True)
    for row, (_, target, cosine) in enumerate(rows(found, "Cosine of each target")):
        assert cosine == pytest.approx(scipy.stats.pearsonr(phrases[row], words[vocabulary.index(target)])[0])
    assert found.name == "composition_through_images"
    flat = np.concatenate([words[:5], np.full((1, 30), 0.3)])
    with pytest.raises(
        ValueError, match="model 'm': expected vectors with a direction, got zero for 1 of 6, first for 'f'"
    ):
        composition({"m": phrases}, {"m": flat}, ["x", "y", "z"], targets, vocabulary, through_images=True)


def nine(seed: int = 0) -> dict:
    """The paper's phrases and vectors of two models: chance, and phrases near their targets."""
    draw = np.random.default_rng(seed)
    phrases, targets = (list(column) for column in zip(*published.PHRASES, strict=True))
    vocabulary = [*targets, *(f"w{number}" for number in range(200))]
    W = draw.normal(size=(len(vocabulary), 20))
    return {
        "of_phrases": {"chance": draw.normal(size=(9, 20)), "near": W[:9] + 0.3 * draw.normal(size=(9, 20))},
        "of_words": {"chance": W, "near": W},
        "phrases": phrases,
        "targets": targets,
        "vocabulary": vocabulary,
    }


def test_the_papers_phrases_stand_beside_ours() -> None:
    found = composition(**nine())
    by_key = {one.key: one for one in found.measures}
    # ranks 20, 94, 167, 239, 489, ...; 1, 2, 2, 3, 4, ...; 2, 2, 2, 3, 5, ...
    assert by_key["rank/median"].published == {"ungrounded": 489, "grounded": 4, "relational": 5}
    assert by_key["rank/within_3"].published == pytest.approx({"ungrounded": 0, "grounded": 4 / 9, "relational": 4 / 9})
    assert by_key["cosine/mean"].published["grounded"] == pytest.approx(5.87 / 9)
    assert rows(found, "Rank of each target")[0][:2] == ("striped horse", "zebra")
    assert by_key["without_own_words/rank/median"].published == {}
    assert rows(found, "Rank of each target")[0][6:] == (2914, 12, 8)
    assert rows(found, "Cosine of each target")[8][4:] == (0.27, 0.52, 0.53)

    given = nine()
    given["phrases"][0] = "wooden horse"
    found = composition(**given)
    assert {one.key: one.published for one in found.measures}["rank/median"] == {}
    assert rows(found, "Rank of each target")[0][6:] == (None, None, None)
    assert rows(found, "Rank of each target")[1][6:] == (2478, 2, 2)
    assert not any(one.published for one in composition(**nine(), through_images=True).measures)


def test_models_differ_with_intervals_and_tests() -> None:
    found = composition(**nine())
    by_key = {one.key: one for one in found.measures}
    (difference,) = by_key["rank/median"].differences
    assert difference.value.high < 0
    ranks = np.array([(row[2], row[4]) for row in rows(found, "Rank of each target")], dtype=float)
    assert difference.p == pytest.approx(scipy.stats.wilcoxon(ranks[:, 1] - ranks[:, 0]).pvalue)
    assert composition(**nine()) == found


def test_phrases_without_a_target_are_left_out_and_counted() -> None:
    given = nine() | {"left_out": {"phrases out of vocabulary": 2}}
    given["targets"][0] = "unicorn"
    given["phrases"][5] = "young puppy"
    found = composition(**given)
    assert found.left_out == {
        "phrases out of vocabulary": 2,
        "phrases whose target is not in the vocabulary": 1,
        "phrases that have their target in them": 1,
    }
    assert found.measures[0].items == len(rows(found, "Rank of each target")) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["unicorn"] * 9}, "a target in the vocabulary of 209 words .* got none among 9"),
        ({"targets": ["zebra"]}, "a target for each of 9 phrases, got 1"),
        ({"of_phrases": {"other": np.ones((9, 20))}}, r"of the same models, got \['other'\] and \['chance', 'near'\]"),
        ({"vocabulary": ["zebra"] * 209}, "each word of the vocabulary once, got 208 again"),
        ({"of_phrases": {}, "of_words": {}}, "the vectors of at least one model"),
        ({"of_phrases": dict.fromkeys(("chance", "near"), np.full((9, 20), np.nan))}, "first for 'striped horse'"),
        (
            {"of_words": dict.fromkeys(("chance", "near"), np.zeros((209, 20)))},
            "got zero for 209 of 209, first for 'zebra'",
        ),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composition(**(nine() | change))
