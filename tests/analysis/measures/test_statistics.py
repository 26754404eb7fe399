"""Correlations, quartiles and tests against SciPy; intervals against resamples that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from groundray.analysis.measures import statistics
from groundray.analysis.measures.correlation import correlations, pearson, spearman
from groundray.analysis.measures.statistics import (
    SEED,
    Estimate,
    holm,
    mean,
    measure,
    median,
    over_items,
    paired_tests,
    slug,
)

SCIPY = {pearson: scipy.stats.pearsonr, spearman: scipy.stats.spearmanr}
BOTH = pytest.mark.parametrize("correlation", SCIPY, ids=lambda one: one.__name__)

numbers = st.lists(st.integers(-5, 5), min_size=3, max_size=30)  # few values, so that there are ties


def made(count: int, slope: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    ratings = draw.uniform(1, 5, size=count).round(1)
    return slope * ratings + draw.normal(size=count), ratings


def r(correlation, x: np.ndarray, y: np.ndarray) -> float:
    return float(SCIPY[correlation](x, y).statistic)


@BOTH
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_a_correlation_is_scipys(correlation, data: st.DataObject) -> None:
    x = np.array(data.draw(numbers), dtype=np.float64)
    y = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=len(x), max_size=len(x))), dtype=np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        with pytest.raises(ValueError, match="a constant has no correlation"):
            correlation({"m": x}, y)
        return
    found = correlation({"m": x, "twice": 2 * x + 1}, y)
    assert found["m"].value == pytest.approx(r(correlation, x, y), abs=1e-12)
    assert found["twice"].value == pytest.approx(found["m"].value, abs=1e-12)


@BOTH
@pytest.mark.parametrize("units", [np.arange(40), np.arange(40) // 2 % 13], ids=["items", "words of several rows"])
def test_resamples_are_those_written_out(correlation, units: np.ndarray) -> None:
    """Each model's figure of each resample, ties, repeats and all."""
    x, y = made(40, 0.5)
    found = correlation({"m": x, "rounded": x.round()}, y, units)
    for model, values in (("m", x), ("rounded", x.round())):
        naive = reference.resampled(lambda x, y: r(correlation, x, y), values, y, units, SEED, 60)
        np.testing.assert_allclose(found[model].resampled[:60], naive, atol=1e-12)
    assert found["m"].resampled.shape == (statistics.RESAMPLES,)


@BOTH
def test_columns_share_resamples_in_blocks_of_any_size(correlation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns together are those alone; the size of a block changes rounding alone."""
    x, y = made(30, 0.5)
    units = np.arange(30) // 2
    scores = {"a": np.stack([x, -x.round()], axis=1), "b": np.stack([x**2, x + y], axis=1)}
    together = correlations(scores, y, units)
    monkeypatch.setattr(statistics, "NUMBERS", 70)
    for column, found in enumerate(together):
        alone = correlation({model: table[:, column] for model, table in scores.items()}, y, units)
        for model, estimate in alone.items():
            of_column = found[correlation.__name__][model]
            assert of_column.value == pytest.approx(estimate.value, abs=1e-13)
            np.testing.assert_allclose(of_column.resampled, estimate.resampled, rtol=0, atol=1e-13)


@BOTH
def test_intervals_are_scipys_percentile_bootstrap(correlation) -> None:
    """Other resamples, so the ends agree but for a few hundredths: 1,000 resamples put them at about ± .01."""
    x, y = made(150, 0.6)
    ours = correlation({"m": x}, y)["m"].with_interval()
    theirs = scipy.stats.bootstrap(
        (x, y),
        lambda x, y: r(correlation, x, y),
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert ours.low < ours.value < ours.high


@BOTH
def test_a_difference_is_over_the_same_resamples(correlation) -> None:
    """Two models that agree about the items differ by little, however wide their own intervals are."""
    x, y = made(60, 0.5)
    close = x + 0.05 * np.random.default_rng(1).normal(size=60)
    found = measure("key", "name", 60, correlation({"first": x, "same": x, "close": close}, y))
    by_pair = {(one.first, one.other): one.value for one in found.differences}
    assert list(by_pair) == [("first", "same"), ("first", "close"), ("same", "close")]
    assert (by_pair["first", "same"].low, by_pair["first", "same"].high) == (0, 0)
    apart, own = by_pair["first", "close"], found.values["first"]
    assert apart.high - apart.low < 0.3 * (own.high - own.low)
    assert apart.value == pytest.approx(found.values["close"].value - own.value)


def test_a_resample_of_one_value_has_no_correlation() -> None:
    """With three items, one in nine resamples repeats a single item; the interval is over the others."""
    found = pearson({"m": np.array([0.1, 0.2, 0.4])}, np.array([1.0, 1.0, 2.0]))["m"]
    undefined = np.isnan(found.resampled)
    assert 0 < undefined.sum() < statistics.RESAMPLES / 2
    value = found.with_interval()
    assert -1 <= value.low <= value.value <= value.high <= 1


@BOTH
@pytest.mark.parametrize(
    ("scores", "ratings", "message"),
    [
        ({"m": np.arange(5.0)}, np.full(5, 2.5), "expected the ratings to differ, got 2.5 for all 5 items"),
        (
            {"m": np.full(5, 1 / 3)},
            np.arange(5.0),
            "expected the scores of model 'm' to differ, got 0.333333 for all 5",
        ),
        (
            {"m": np.array([1, np.nan, 3, np.inf])},
            np.arange(4.0),
            "got 2 NaN or infinite of 4 in the scores of model 'm'",
        ),
        ({"m": np.arange(3.0)}, np.array([1, np.nan, 2]), "got 1 NaN or infinite of 3 in the ratings"),
        ({"m": np.arange(2.0)}, np.arange(2.0), "expected at least 3 items for a correlation, got 2"),
        ({}, np.arange(5.0), "expected the scores of at least one model, got none"),
    ],
)
def test_undefined_correlation_is_refused(correlation, scores, ratings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correlation(scores, ratings)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40))
@settings(deadline=None, max_examples=30)
def test_quartiles_are_numpys(values: list[float]) -> None:
    scores = {"m": np.array(values)}
    for name, share in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75)):
        found = over_items(scores, statistics.QUARTILES[name])["m"]
        assert found.value == pytest.approx(np.quantile(values, share), abs=1e-12)
        assert (found.with_interval().low is None) == (len(values) < 3)


def test_a_medians_interval_is_that_of_the_resamples_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = made(25, 0.0)
    found = over_items({"m": x, "shifted": x + 1}, median)
    naive = reference.resampled(lambda x, _: float(np.median(x)), x, x, np.arange(25), SEED, 60)
    np.testing.assert_allclose(found["m"].resampled[:60], naive)
    monkeypatch.setattr(statistics, "NUMBERS", 40)
    assert np.array_equal(over_items({"m": x}, median)["m"].resampled, found["m"].resampled)
    shift = (found["shifted"] - found["m"]).with_interval()
    assert (shift.low, shift.value, shift.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one model"),
        ({"m": np.empty(0)}, "at least one item"),
        ({"m": np.array([0, np.nan])}, "1 NaN or infinite of 2 in m"),
    ],
)
def test_figures_of_nothing_are_refused(scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        over_items(scores, mean)


def test_paired_tests_are_scipys_and_corrected() -> None:
    draw = np.random.default_rng(5)
    base = draw.normal(size=30).round(1)
    scores = {"a": base, "b": base + draw.normal(0.3, 0.5, size=30).round(1), "c": base + 0.01}
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    alone = [float(scipy.stats.wilcoxon(scores[first], scores[other]).pvalue) for first, other in pairs]
    found = paired_tests(scores)
    assert list(found) == pairs
    assert list(found.values()) == pytest.approx(holm(alone))


def test_paired_tests_of_equal_or_few_scores() -> None:
    same = np.arange(5.0)
    assert paired_tests({"a": same, "b": same}) == {("a", "b"): 1.0}
    assert paired_tests({"a": same[:2], "b": -same[:2]}) == {}
    with pytest.raises(ValueError, match="1 NaN"):
        paired_tests({"a": np.array([1.0, 2, np.nan]), "b": same[:3]})


def test_holm_by_hand() -> None:
    """.01 counts thrice, .03 twice, .04 once, and none is below one that was lower."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_raises_every_p_and_keeps_their_order(p: list[float]) -> None:
    corrected = holm(p)
    assert all(1 >= after >= before for before, after in zip(p, corrected, strict=True))
    order = sorted(range(len(p)), key=lambda one: p[one])
    assert [corrected[one] for one in order] == sorted(corrected)
    assert min(corrected) == pytest.approx(min(1, len(p) * min(p)))


def test_a_measure_has_what_it_was_given() -> None:
    estimates = {"a": Estimate(1.0, np.array([0.0, 1, 2])), "b": Estimate(3.0, np.array([3.0, 3, 4]))}
    found = measure("key", "name", 7, estimates, {("a", "b"): 0.2}, {"grounded": 0.5})
    assert (found.key, found.name, found.items, found.published) == ("key", "name", 7, {"grounded": 0.5})
    (difference,) = found.differences
    assert (difference.first, difference.other, difference.p) == ("a", "b", 0.2)
    assert (difference.value.value, difference.value.low, difference.value.high) == pytest.approx((2, 2, 2.95))


def test_a_slug_fits_a_metrics_name() -> None:
    assert slug("other perceptual") == "other_perceptual"
    assert slug("form & surface (seen)") == "form_surface_seen_"
    assert slug("EN-SIMLEX-999") == "EN-SIMLEX-999"
