"""Correlations of cosines with human scores against SciPy; pairs that are not covered."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from groundray.analysis.measures.similarity import similarity

WORDS = tuple(f"w{number}" for number in range(20))


def made(seed: int = 0) -> tuple[np.ndarray, list[tuple[str, str, float]]]:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(20, 5))
    pairs = [(f"w{one}", f"w{other}") for one, other in draw.integers(20, size=(50, 2))]
    return vectors, [(one, other, float(draw.integers(1, 8))) for one, other in pairs]


def test_rho_is_scipys() -> None:
    vectors, pairs = made()
    models = {"m": vectors, "n": vectors**3}
    found = similarity(models, WORDS, {"EN-ONE": pairs, "two & more": pairs[:9]})
    assert [one.key for one in found.measures] == ["EN-ONE/spearman", "two_more/spearman"]
    for model, rows in models.items():
        cosines = [
            round(1 - scipy.spatial.distance.cosine(*(rows[int(one[1:])] for one in pair[:2])), 9) for pair in pairs
        ]
        expected = scipy.stats.spearmanr(cosines, [score for _, _, score in pairs]).statistic
        assert found.measures[0].values[model].value == pytest.approx(expected)
    assert found.measures[0].items == 50
    assert found.measures[0].differences[0].value.low is not None
    assert found.left_out == {}
    assert similarity(models, WORDS, {"EN-ONE": pairs, "two & more": pairs[:9]}) == found


def test_pairs_that_are_not_covered_are_counted_a_set() -> None:
    vectors, pairs = made()
    few = [("w1", "unknown", 1.0), ("unknown", "w2", 2.0), ("w1", "w2", 3.0), ("w2", "w3", 3.0)]
    found = similarity({"m": vectors}, WORDS, {"half": [*pairs, *few[:2]], "few": few}, left_out={"repeated": 1})
    (table,) = found.tables
    assert table.columns == ("set", "pairs", "used", "share used", "m")
    assert table.rows[0][:4] == ("half", 52, 50, 0.961)
    assert table.rows[1] == ("few", 4, 2, 0.5, None)
    assert [one.key for one in found.measures] == ["half/spearman"]
    assert found.left_out == {
        "repeated": 1,
        "pairs with a word that has no vector, or of a set with too few others": 6,
        "sets of fewer than 3 pairs with vectors": 1,
    }


def test_a_share_of_one_is_said_of_all_pairs_alone() -> None:
    vectors, pairs = made()
    many = [*(pairs * 80), ("w1", "unknown", 1.0)]
    (table,) = similarity({"m": vectors}, WORDS, {"many": many, "all": pairs, "read": pairs}, given={"read": 51}).tables
    assert [row[1:4] for row in table.rows] == [(4001, 4000, 0.999), (50, 50, 1.0), (51, 50, 0.98)]


def test_each_stratum_is_measured_as_its_pairs_alone() -> None:
    vectors, pairs = made()
    models = {"m": vectors, "n": vectors**3, "twice": 2 * vectors}
    even, tail = np.arange(0, 50, 2), np.arange(35, 50)
    missing = [*pairs, ("w1", "unknown", 1.0)]
    found = similarity(models, WORDS, {"set": missing, "plain": pairs}, strata={"set": {"A & B": even, "tail": tail}})
    assert [one.key for one in found.measures] == [
        "set/spearman",
        "set/by/A_B/spearman",
        "set/by/tail/spearman",
        "plain/spearman",
    ]
    for members, of_stratum in zip((even, tail), found.measures[1:3], strict=True):
        alone = similarity(models, WORDS, {"alone": [pairs[one] for one in members]}).measures[0]
        assert of_stratum.values == alone.values
        assert of_stratum.differences == alone.differences
        assert of_stratum.items == len(members)
    by_pair = {(one.first, one.other): one for one in found.measures[1].differences}
    assert by_pair["m", "twice"].p == 1
    assert 0 < by_pair["m", "n"].p <= 1
    table = found.tables[1]
    assert (table.title, table.columns) == ("set by stratum", ("model", "all", "A & B", "tail"))
    assert table.rows[0] == ("pairs", 50, 25, 15)
    assert table.rows[2] == ("n", *(one.values["n"].value for one in found.measures[:3]))
    (bars,) = found.pictures
    assert list(bars.groups) == ["all", "A & B", "tail"]
    assert bars.items == {"all": 50, "A & B": 25, "tail": 15}
    assert bars.groups["tail"] == found.measures[2].values


def test_strata_that_have_no_correlation_are_counted() -> None:
    vectors, pairs = made()
    pairs = [*pairs, *(("w1", f"w{number}", 5.0) for number in range(2, 16))]
    strata = {"set": {"few": np.arange(9), "flat": np.arange(50, 64), "same words": np.array([1] * 12)}}
    found = similarity({"m": vectors}, WORDS, {"set": pairs}, strata=strata)
    assert [one.key for one in found.measures] == ["set/spearman"]
    assert found.left_out == {
        "strata of fewer than 10 pairs with vectors": 2,
        "strata whose scores or cosines are all equal": 1,
    }
    assert found.pictures == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "a set with at least 3 pairs of known words, got none: no set"),
        ({"sets": {"a": [], "b": [("x", "y", 1.0)]}}, "got none: a, b"),
        (
            {"sets": {"flat": [("w1", "w2", 2.0), ("w3", "w4", 2.0), ("w5", "w6", 2.0)]}},
            "flat: expected the ratings to differ",
        ),
        (
            {"vectors": {"m": np.ones((20, 5)) * np.arange(1, 21)[:, None]}},
            "set: expected the scores of model 'm' to differ",
        ),
        ({"vectors": {"m": np.full((20, 5), np.nan)}}, "finite vectors"),
        ({"words": ["w1"] * 20}, "each word once, got 19 again"),
        ({"words": [], "vectors": {"m": np.empty((0, 5))}}, "at least one text"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    vectors, pairs = made()
    with pytest.raises(ValueError, match=message):
        similarity(**({"vectors": {"m": vectors}, "words": WORDS, "sets": {"set": pairs}} | change))
