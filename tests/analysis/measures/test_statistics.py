"""Correlations, quartiles and tests against SciPy; intervals against resamples that are written out."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundray.analysis.measures import correlation, statistics
from groundray.analysis.measures.correlation import correlations, paired_correlation_tests, pearson, spearman
from groundray.analysis.measures.statistics import (
    SEED,
    Estimate,
    holm,
    lower_quartile,
    mean,
    measure,
    median,
    over_items,
    paired_tests,
    slug,
)
from groundray.analysis.result import Value

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


def scipys_bca(figure, samples: tuple[np.ndarray, ...], resampled: np.ndarray) -> tuple[float, float]:
    """SciPy's BCa interval of these resamples, with its own jackknife."""
    found = scipy.stats.bootstrap(
        samples,
        figure,
        paired=len(samples) > 1,
        vectorized=False,
        n_resamples=0,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=resampled),
        method="BCa",
    ).confidence_interval
    return float(found.low), float(found.high)


@BOTH
def test_intervals_are_scipys_bca(correlation) -> None:
    """SciPy leaves out each item; ours takes each item's exact influence, which differs by the order of 1 / items."""
    x, y = made(150, 1.2)
    found = correlation({"m": x}, y)["m"]
    ours = found.with_interval()
    theirs = scipys_bca(lambda x, y: r(correlation, x, y), (x, y), found.resampled)
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=5e-4)
    percentiles = np.quantile(found.resampled, statistics.TAILS)
    assert np.abs(percentiles - theirs).min() > 1.5e-3, "expected a correction that the tolerance tells"


@BOTH
@pytest.mark.parametrize("units", [np.arange(30), np.arange(30) // 2 % 11], ids=["items", "words of several rows"])
def test_influence_is_the_derivative_by_weight(correlation, units: np.ndarray) -> None:
    x, y = (values.round() for values in made(30, 0.7))

    def weighted(weight: np.ndarray) -> float:
        numbers = [x, y]
        if correlation is spearman:  # the weight of all below, and half of that of all equal ones
            numbers = [[weight @ ((own < one) * 0.5 + (own <= one) * 0.5) for one in own] for own in numbers]
        covariance = np.cov(*numbers, aweights=weight, ddof=0)
        return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])

    ours = correlation({"m": x}, y, units)["m"].influence / len(x)
    step = 1e-5
    naive = [
        (weighted(1 + step * (units == unit)) - weighted(1 - step * (units == unit))) / (2 * step)
        for unit in range(units.max() + 1)
    ]
    np.testing.assert_allclose(ours, naive, atol=1e-9)


@pytest.mark.parametrize(
    ("figure", "naive", "items"),
    [
        (mean, np.mean, 40),
        (mean, np.mean, 3),
        (median, np.median, 41),
        (lower_quartile, lambda x: np.quantile(x, 0.25), 60),
    ],
)
def test_intervals_of_items_are_scipys_bca(figure, naive, items: int) -> None:
    values = {"m": np.random.default_rng(items).exponential(size=items).round(1), "n": np.arange(items) / items}
    for model, found in over_items(values, figure).items():
        theirs = scipys_bca(lambda x: naive(x), (values[model],), found.resampled)
        value = found.with_interval()
        assert (value.low, value.high) == pytest.approx(theirs, abs=1e-9)


def test_a_differences_interval_is_scipys_bca() -> None:
    draw = np.random.default_rng(3)
    scores = {"a": draw.exponential(size=50), "b": draw.exponential(size=50) ** 2}
    found = over_items(scores, mean)
    value = (found["b"] - found["a"]).with_interval()
    theirs = scipys_bca(
        lambda a, b: b.mean() - a.mean(), (scores["a"], scores["b"]), found["b"].resampled - found["a"].resampled
    )
    assert (value.low, value.high) == pytest.approx(theirs, abs=1e-9)


def test_of_many_items_groups_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acceleration of 47 items in 20 groups, of two sizes; and about that of leaving out each item."""
    values = np.random.default_rng(1).exponential(size=47)
    each = over_items({"m": values}, mean)["m"].influence
    monkeypatch.setattr(statistics, "GROUPS", 20)
    ours = over_items({"m": values}, mean)["m"].influence
    left = [values[np.arange(47) % 20 != group].mean() for group in range(20)]
    np.testing.assert_allclose(ours, np.mean(left) - left, atol=1e-12)
    assert acceleration(ours) == pytest.approx(acceleration(each), abs=0.02)
    monkeypatch.setattr(statistics, "NUMBERS", 100)
    assert np.array_equal(over_items({"m": values}, mean)["m"].influence, ours)


def acceleration(influence: np.ndarray) -> float:
    return float((influence**3).sum() / (influence**2).sum() ** 1.5 / 6)


def test_an_interval_is_between_percentiles_where_bca_is_not_defined() -> None:
    resampled = np.arange(1000.0)
    percentiles = pytest.approx(np.quantile(resampled, (0.025, 0.975)))
    skewed = np.array([3.0, -1, -1, -1])
    for value, influence in ((500.0, np.empty(0)), (500.0, np.zeros(4)), (-1.0, skewed), (1000.0, skewed)):
        found = Estimate(value, resampled, influence).with_interval()
        assert (found.low, found.high) == percentiles
    corrected = Estimate(400.0, resampled, skewed).with_interval()  # bias z(.4005), acceleration 24 / (6 · 12^1.5)
    assert (corrected.low, corrected.high) == pytest.approx((18.934104, 962.449511))


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
    """One in three resamples has one rating alone, as it lacks the last item; the interval is over the others."""
    found = pearson({"m": np.array([0.1, 0.2, 0.3, 0.5, 0.4, 0.9])}, np.array([1.0, 1, 1, 1, 1, 2]))["m"]
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
@example([0.0] * 15 + [-1.0] * 6 + [-1e-131] * 10)  # the influence of an item on a median is tiny
@settings(deadline=None, max_examples=30)
def test_quartiles_are_numpys(values: list[float]) -> None:
    scores = {"m": np.array(values)}
    for name, share, fewest in (("lower_quartile", 0.25, 13), ("median", 0.5, 6), ("upper_quartile", 0.75, 13)):
        found = over_items(scores, statistics.QUARTILES[name])["m"]
        assert found.value == pytest.approx(np.quantile(values, share), abs=1e-12)
        assert (found.with_interval().low is None) == (len(values) < fewest)


@pytest.mark.parametrize("items", [6, 7, 12, 13, 20, 29])
@pytest.mark.parametrize("figure", statistics.QUARTILES.values(), ids=statistics.QUARTILES)
def test_exact_intervals_cover_the_quantile_by_counting(figure, items: int) -> None:
    """The chance that the quantile lies outside, term by term, is at most 2.5% a side; of a narrower interval more."""

    def chance(fewest: int, most: int) -> float:
        """Chance that the number of items below the quantile is in a range."""
        return sum(
            math.comb(items, below) * figure.share**below * (1 - figure.share) ** (items - below)
            for below in range(fewest, most + 1)
        )

    value = over_items({"m": np.arange(1.0, items + 1)}, figure)["m"].with_interval()
    if value.low is None or value.high is None:
        assert chance(0, 0) > 0.025 or chance(items, items) > 0.025
        return
    low, high = int(value.low), int(value.high)  # an item's value is its rank
    assert chance(0, low - 1) <= 0.025 < chance(0, low)
    assert chance(high, items) <= 0.025 < chance(high - 1, items)


def test_the_exact_interval_of_a_median_by_a_table() -> None:
    """The ranks that textbooks list for a sign test of 5%: 1 and 6 of 6, 2 and 8 of 9, 6 and 15 of 20, none of 5."""
    draw = np.random.default_rng(0)
    for items, ranks in ((6, (1, 6)), (9, (2, 8)), (20, (6, 15)), (5, None)):
        values = draw.permutation(items) + 1.0
        found = over_items({"m": values}, median)["m"].with_interval()
        assert (found.low, found.high) == (ranks or (None, None))


def test_a_difference_of_small_medians_has_the_interval_of_its_resamples() -> None:
    """Its figure is no order statistic. Four items are too few for an interval of each median."""
    scores = {"a": np.array([0.1, 0.2, 0.4, 0.9]), "b": np.array([0.3, 0.4, 0.5, 1.1])}
    found = over_items(scores, median)
    assert found["a"].with_interval() == Value(pytest.approx(0.3))
    difference = (found["b"] - found["a"]).with_interval()
    assert difference.low is not None
    assert difference.low <= difference.value == pytest.approx(0.15)


def test_a_medians_resamples_are_those_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_a_correlations_p_is_the_share_of_swaps_that_differ_as_much(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all 2^10 swaps, written out: of the models' standard scores, or ranks, of each item."""
    draw = np.random.default_rng(4)
    y = draw.normal(size=10).round(1)
    scores = {"a": (y + 2 * draw.normal(size=10)).round(1), "b": draw.normal(size=10).round(1)}
    as_numbers = scipy.stats.rankdata if kind == "spearman" else np.asarray
    ((pair, p),) = paired_correlation_tests(scores, y, kind).items()
    assert pair == ("a", "b")

    def standard(values: np.ndarray) -> np.ndarray:
        return scipy.stats.zscore(as_numbers(values))

    a, b, rated = standard(scores["a"]), standard(scores["b"]), standard(y)
    found = []
    for swaps in itertools.product((False, True), repeat=10):
        first, other = np.where(swaps, b, a), np.where(swaps, a, b)
        found.append(abs(np.corrcoef(first, rated)[0, 1] - np.corrcoef(other, rated)[0, 1]))
    assert found[0] == pytest.approx(abs(r(globals()[kind], scores["a"], y) - r(globals()[kind], scores["b"], y)))
    exact = np.mean(np.array(found) >= found[0] - 1e-9)
    assert 0.01 < exact < 0.5
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact / correlation.SWAPS))
    monkeypatch.setattr(statistics, "NUMBERS", 5_000)  # blocks of another size draw the same bits
    assert paired_correlation_tests(scores, y, kind)[pair] == p


def test_correlations_of_models_are_tested_and_corrected() -> None:
    draw = np.random.default_rng(0)
    y = draw.normal(size=60)
    good = y + draw.normal(size=60)
    scores = {"good": good, "same": good * 3, "bad": draw.normal(size=60)}
    found = paired_correlation_tests(scores, y, "spearman")
    assert list(found) == [("good", "same"), ("good", "bad"), ("same", "bad")]
    assert found["good", "same"] == 1
    assert found["good", "bad"] == found["same", "bad"] < 0.01
    assert paired_correlation_tests({"one": y}, -y, "pearson") == {}
    with pytest.raises(ValueError, match="expected the ratings to differ"):
        paired_correlation_tests(scores, np.ones(60), "spearman")


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


@pytest.mark.parametrize(
    ("units", "has"), [(np.arange(5), False), (np.array([0, 1, 2, 3, 4, 0, 1]), False), (np.arange(6), True)]
)
def test_a_correlation_of_few_units_has_no_interval(units: np.ndarray, has: bool) -> None:
    draw = np.random.default_rng(3)
    ratings = draw.normal(size=len(units))
    scores = {name: ratings + draw.normal(size=len(units)) for name in ("one", "other")}
    found = pearson(scores, ratings, units)
    for estimate in (found["one"], found["other"] - found["one"]):
        value = estimate.with_interval()
        assert (value.low is not None, value.high is not None) == (has, has)
    assert found["one"].value == pytest.approx(np.corrcoef(scores["one"], ratings)[0, 1])
