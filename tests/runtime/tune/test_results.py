"""Comparison of trials."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from groundray.runtime.tune import plot
from groundray.runtime.tune.plot import draw
from groundray.runtime.tune.results import State, Trial, best_trial, front, points, table, valued_by
from groundray.runtime.tune.search_space import Space
from groundray.runtime.tune.spec import Metric

TOP1 = Metric("visual", "top1", "max")
LOSS = Metric("visual", "loss", "min")


def trial(x: float, value: float | None, seed: int = 0, state: State = "finished") -> Trial:
    return Trial(f"trial-{x}-{seed}", {"visual.dropout": x}, seed, state, value, epochs=3, seconds=90.0)


def test_points_are_means_over_seeds_best_first() -> None:
    trials = [trial(0.1, 0.5), trial(0.1, 0.7, seed=1), trial(0.2, 0.62), trial(0.2, 0.64, seed=1)]
    found = points(trials, TOP1)
    assert [point.values["visual.dropout"] for point in found] == [0.2, 0.1]
    assert [point.mean for point in found] == pytest.approx([0.63, 0.6])
    assert found[1].std == pytest.approx(0.02**0.5)  # standard deviation of two numbers .2 apart
    assert best_trial(trials, TOP1) == trial(0.2, 0.64, seed=1)
    assert [point.values["visual.dropout"] for point in points(trials, LOSS)] == [0.1, 0.2]
    assert best_trial(trials, LOSS) == trial(0.1, 0.5)


def test_trials_with_equal_values_and_seeds_are_points_of_their_own() -> None:
    """Such are members of a population, which share a seed."""
    strong, weak, other = trial(0.05, 0.9), replace(trial(0.05, 0.3), name="trial-1"), trial(0.1, 0.7)
    assert best_trial([strong, weak, other], TOP1) == strong
    assert [point.trials for point in points([strong, weak, other], TOP1)] == [(strong,), (other,), (weak,)]
    head, lines = table([strong, weak, other], TOP1)
    assert head == ["visual.dropout", "visual/top1", "epochs", "state", "minutes"]
    assert [line[:2] for line in lines] == [["0.05", "0.9"], ["0.1", "0.7"], ["0.05", "0.3"]]


def test_a_trial_without_a_model_is_not_the_best() -> None:
    trials = [trial(0.1, 0.9, state="stopped early"), trial(0.2, 0.5), trial(0.3, None, state="failed")]
    assert best_trial(trials, TOP1) == trial(0.2, 0.5)
    assert [point.values["visual.dropout"] for point in points(trials, TOP1)] == [0.2, 0.1, 0.3]
    assert best_trial(trials[2:], TOP1) is None


def test_a_value_that_is_not_a_number_is_no_value() -> None:
    trials = [trial(0.1, float("nan")), trial(0.2, 0.5)]
    assert [point.values["visual.dropout"] for point in points(trials, LOSS)] == [0.2, 0.1]
    assert best_trial(trials, LOSS) == trial(0.2, 0.5)


def test_the_table_has_a_line_a_point() -> None:
    head, lines = table([trial(0.1, 0.5), trial(0.1, 0.7, 1, "stopped early"), trial(0.2, None, 0, "failed")], TOP1)
    assert head == ["visual.dropout", "visual/top1", "over seeds", "epochs", "state", "minutes"]
    assert lines == [
        ["0.1", "0.5", "± 0 (1)", "3", "1 finished, 1 stopped early", "3.0"],
        ["0.2", "", "± 0 (0)", "3", "failed", "1.5"],
    ]


def test_a_logarithmic_axis_is_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are written out, and none lies on another."""
    drawn: list[Figure] = []
    monkeypatch.setattr(plot, "png", lambda figure: drawn.append(figure) or b"")
    names = ["relational.weights.pair", "relational.weights.object", "relational.temperature"]
    swept = [Space.parse(f"{name}=loguniform:0.1:10") for name in names]
    trials = [Trial(f"t{x}", dict.fromkeys(names, x), 0, "finished", 0.5) for x in (0.12, 0.4, 1.7, 7.7)]
    draw(tmp_path / "sweep.png", "sweep", trials, swept, TOP1)
    drawn[0].draw_without_rendering()
    for panel in drawn[0].axes:
        labels = [label for which in ("major", "minor") for label in panel.get_xticklabels(which=which)]
        low, high = panel.get_xlim()
        shown = [one for one in labels if one.get_text() and low <= one.get_position()[0] <= high]
        assert [one.get_text() for one in shown] == ["0.1", "0.2", "0.5", "1", "2", "5"]
        boxes = [one.get_window_extent() for one in shown]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("metric", [TOP1, LOSS])
def test_the_picture_shows_numbers_and_words(tmp_path: Path, metric: Metric) -> None:
    swept = [Space.parse("visual.dropout=loguniform:0.01:1"), Space.parse("visual.optimizer.kind=choice:adam,sgd")]
    trials = [
        Trial(f"t{place}", {"visual.dropout": x, "visual.optimizer.kind": kind}, seed, state, value)
        for place, (x, kind, seed, state, value) in enumerate(
            [
                (0.1, "adam", 0, "finished", 0.5),
                (0.1, "adam", 1, "finished", 0.6),
                (0.4, "sgd", 0, "stopped early", 0.3),
                (0.9, "sgd", 0, "failed", None),
            ]
        )
    ]
    draw(tmp_path / "sweep.png", "sweep", trials, swept, metric)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (1620, 630)
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 10


def test_the_picture_of_no_result_is_empty(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", "a", [trial(0.1, None, state="failed")], [Space.parse("visual.dropout=choice:0.1")], TOP1)
    assert (tmp_path / "a.png").exists()


def scored(x: float, top1: float | None, loss: float | None, state: State = "finished", seed: int = 0) -> Trial:
    scores = {str(metric): value for metric, value in ((TOP1, top1), (LOSS, loss)) if value is not None}
    return Trial(f"trial-{x}-{seed}", {"visual.dropout": x}, seed, state, top1, epochs=3, seconds=90.0, scores=scores)


def test_the_front_is_what_no_other_point_dominates() -> None:
    trials = [
        scored(0.1, 0.9, 3.0),
        scored(0.2, 0.7, 1.0),
        scored(0.3, 0.7, 2.0),  # as good as the second by one metric, worse by the other
        scored(0.4, 0.6, 4.0),
        scored(0.5, 0.95, 0.5, "stopped early"),
        scored(0.6, 0.99, None),
        scored(0.7, 0.99, float("nan")),
    ]
    assert [point.values["visual.dropout"] for point in front(trials, (TOP1, LOSS))] == [0.1, 0.2]
    assert [point.values["visual.dropout"] for point in front(trials, (LOSS, TOP1))] == [0.2, 0.1]
    assert front(trials[4:5], (TOP1, LOSS)) == []
    head, lines = table(trials, TOP1, LOSS)
    assert head == ["visual.dropout", "visual/top1", "visual/loss", "front", "epochs", "state", "minutes"]
    assert [line[:4] for line in lines[:3]] == [
        ["0.1", "0.9", "3", "yes"],
        ["0.2", "0.7", "1", "yes"],
        ["0.6", "0.99", "", ""],
    ]
    assert [best_trial(valued_by(trials[:6], metric), metric) for metric in (TOP1, LOSS)] == [
        valued_by(trials, TOP1)[5],
        valued_by(trials, LOSS)[1],
    ]


def test_equal_points_are_all_on_the_front_and_seeds_count_by_their_mean() -> None:
    trials = [scored(0.1, 0.5, 1.0), scored(0.2, 0.5, 1.0), scored(0.3, 0.9, 1.5), scored(0.3, 0.3, 1.5, seed=1)]
    assert [point.values["visual.dropout"] for point in front(trials, (TOP1, LOSS))] == [0.3, 0.1, 0.2]
    assert front([], (TOP1, LOSS)) == []
