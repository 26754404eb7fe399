"""Held-out F1 of features against a classifier written out, and features that are to be read and that are not."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from scipy.sparse import csc_array, csr_array
from sklearn.model_selection import StratifiedKFold

from groundray.analysis.measures.feature_norms import SEED, ClassifierOptions, feature_norms, held_out_f1, scored
from groundray.analysis.measures.statistics import paired_tests

TYPES = ("taxonomic", "visual", "smell of it")


def made(concepts: int = 40, dim: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, and features: the first is what the first dimension says, the others are chance."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(concepts, dim))
    has = draw.random((concepts, 6)) < 0.3
    has[:, 0] = vectors[:, 0] > 0.2
    return vectors, has


def names(count: int, what: str) -> list[str]:
    return [f"{what} {number}" for number in range(count)]


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("dim", [12, 60], ids=["fewer dimensions than concepts", "more"])
def test_f1_is_that_of_the_classifier_written_out(weighting, dim: int) -> None:
    """Decisions are the same for every concept, so F1 is the same number."""
    vectors, has = made(dim=dim)
    for feature in range(2):
        predicted = np.zeros(40, dtype=bool)
        for train, held_out in StratifiedKFold(4, shuffle=True, random_state=SEED).split(vectors, has[:, feature]):
            own = vectors[train], has[train, feature], vectors[held_out]
            predicted[held_out] = reference.logistic(*own, strength=0.5, balanced=weighting == "balanced")
        true = (predicted & has[:, feature]).sum()
        precision, recall = true / max(predicted.sum(), 1), true / has[:, feature].sum()
        expected = 2 * precision * recall / (precision + recall) if true else 0.0
        assert held_out_f1(vectors, has[:, feature], 4, weighting, 0.5) == pytest.approx(expected)


def test_a_feature_that_the_vectors_tell_scores_and_chance_does_not() -> None:
    vectors, has = made(120)
    f1 = scored({"m": vectors}, csc_array(has))["m"]
    assert f1[0] > 0.85
    assert f1[1:].max() < 0.6


@pytest.mark.thorough
def test_processes_do_not_change_the_scores() -> None:
    vectors, has = made()
    models = {"m": vectors, "n": vectors**2}
    alone, both = (scored(models, csc_array(has), ClassifierOptions(processes=processes)) for processes in (1, 2))
    for model in models:
        np.testing.assert_array_equal(alone[model], both[model])


def test_quartiles_by_type_and_paired_tests() -> None:
    vectors, has = made()
    models = {"m": vectors, "n": np.roll(vectors, 1, axis=0)}
    types = ["visual", "visual", "visual", "taxonomic", "taxonomic", "smell of it"]
    found = feature_norms(models, names(40, "concept"), names(6, "feature"), csr_array(has), types)
    f1 = scored(models, csc_array(has))
    by_key = {one.key: one for one in found.measures}
    assert list(by_key)[::3] == [
        "f1/all/lower_quartile",
        "f1/visual/lower_quartile",
        "f1/taxonomic/lower_quartile",
        "f1/smell_of_it/lower_quartile",
    ]
    median = by_key["f1/visual/median"]
    assert median.items == 3
    for model, scores in f1.items():
        assert median.values[model].value == np.median(scores[:3])
        assert by_key["f1/all/upper_quartile"].values[model].value == pytest.approx(np.quantile(scores, 0.75))
    assert by_key["f1/all/median"].differences[0].p == paired_tests(f1)["m", "n"]
    assert by_key["f1/all/upper_quartile"].differences[0].p is None
    assert by_key["f1/taxonomic/median"].values["m"].low is None  # of two features there is no interval
    assert median.published == {"ungrounded": 0.0, "grounded": 0.102, "relational": 0.177}
    (table,) = found.tables
    assert table.columns == ("feature", "type", "concepts", "F1 of always yes", "m", "n")
    share = has[:, 3].mean()
    always = 2 * share / (share + 1)  # precision is the share, recall 1
    assert table.rows[3] == ("feature 3", "taxonomic", has[:, 3].sum(), pytest.approx(always), f1["m"][3], f1["n"][3])
    (spread,) = found.pictures
    assert spread.groups["taxonomic"]["n"] == tuple(f1["n"][3:5])
    assert list(spread.groups) == ["all", "visual", "taxonomic", "smell of it"]


def test_untyped_features_are_one_group() -> None:
    vectors, has = made()
    found = feature_norms({"m": vectors}, names(40, "concept"), names(6, "feature"), csr_array(has), [""] * 6)
    assert {one.key for one in found.measures} == {
        f"f1/all/{name}" for name in ("lower_quartile", "median", "upper_quartile")
    }
    assert {row[1] for row in found.tables[0].rows} == {"untyped"}
    mixed = feature_norms(
        {"m": vectors}, names(40, "concept"), names(6, "feature"), csr_array(has), ["", *["visual"] * 5]
    )
    assert list(mixed.pictures[0].groups) == ["all", "visual", "untyped"]


def test_features_of_one_concept_or_of_nearly_all_are_left_out_and_counted() -> None:
    vectors, has = made()
    has[:, 1] = np.arange(40) == 7
    has[:, 2] = True
    has[:, 3] = np.arange(40) > 2
    found = feature_norms(
        {"m": vectors}, names(40, "concept"), names(6, "feature"), csr_array(has), ["visual"] * 6, left_out={"rare": 2}
    )
    assert found.left_out == {
        "rare": 2,
        "features of fewer than 5 concepts": 1,
        "features that fewer than 5 concepts lack": 2,
    }
    assert [row[0] for row in found.tables[0].rows] == ["feature 0", "feature 4", "feature 5"]
    one = np.arange(40)[:, None] == 3
    with pytest.raises(
        ValueError, match="expected a feature that at least 5 concepts have and 5 do not, got none of 1"
    ):
        feature_norms({"m": vectors}, names(40, "concept"), ["rare"], csr_array(one), ["visual"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": {"m": np.full((40, 12), np.nan)}}, "model 'm': expected finite vectors"),
        ({"vectors": {}}, "the vectors of at least one model"),
        ({"has": csr_array((40, 5))}, r"got \(40, 5\) and 6 types"),
        ({"types": ["visual"]}, r"got \(40, 6\) and 1 types"),
        ({"options": ClassifierOptions(folds=1)}, "at least 2 folds"),
        ({"options": ClassifierOptions(strength=0.0)}, "a strength above 0"),
        ({"concepts": [], "vectors": {"m": np.empty((0, 12))}}, "at least one text"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    vectors, has = made()
    given = {
        "vectors": {"m": vectors},
        "concepts": names(40, "concept"),
        "features": names(6, "feature"),
        "has": csr_array(has),
        "types": ["visual"] * 6,
    } | change
    with pytest.raises(ValueError, match=message):
        feature_norms(**given)
