"""The pictures of a sweep's trials side by side, and of the front of several metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from groundray.analysis.report.plotting import GREY, ORANGE
from groundray.runtime.tune import front_plot, parallel_plot, plot
from groundray.runtime.tune.results import State, Trial
from groundray.runtime.tune.search_space import Space
from groundray.runtime.tune.spec import Metric

TOP1, LOSS = Metric("visual", "top1", "max"), Metric("visual", "loss", "min")
SWEPT = [Space.parse("visual.dropout=loguniform:0.01:1"), Space.parse("visual.optimizer.kind=choice:adam,sgd")]


def trial(number: int, x: float, kind: str, state: State, top1: float | None, loss: float | None = None) -> Trial:
    scores = {str(metric): value for metric, value in ((TOP1, top1), (LOSS, loss)) if value is not None}
    values = {"visual.dropout": x, "visual.optimizer.kind": kind}
    return Trial(f"t{number}", values, 0, state, top1, scores=scores)


TRIALS = [
    trial(0, 0.1, "adam", "finished", 0.5, 2.0),
    trial(1, 1.0, "adam", "finished", 0.9, 3.0),
    trial(2, 0.1, "sgd", "stopped early", 0.3, 4.0),
    trial(3, 0.01, "sgd", "failed", None),
    trial(4, 0.02, "sgd", "finished", float("nan"), 1.0),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, which are written as well."""
    figures: list[Figure] = []
    for module in (plot, parallel_plot, front_plot):
        write = module.png
        monkeypatch.setattr(module, "png", lambda figure, write=write: figures.append(figure) or write(figure))
    return figures


def test_parallel_coordinates_have_a_line_a_trial(tmp_path: Path, drawn: list[Figure]) -> None:
    parallel_plot.draw(tmp_path / "parallel.png", "sweep", TRIALS, SWEPT, TOP1)
    panel = drawn[0].axes[0]
    lines = [line for line in panel.get_lines() if len(line.get_xdata()) > 1 and len(set(line.get_xdata())) > 1]
    assert [list(line.get_ydata()) for line in lines] == [
        pytest.approx([0.5, 0.0, 1 / 3]),
        pytest.approx([1.0, 0.0, 1.0]),
        pytest.approx([0.5, 1.0, 0.0]),
        pytest.approx([0.0, 1.0]),  # a trial without a value ends before the metric
        pytest.approx([0.150515, 1.0], abs=1e-6),
    ]
    looks = [(to_hex(line.get_color()), line.get_linestyle()) for line in lines]
    assert looks[1:] == [(ORANGE.lower(), "-"), *[(GREY.lower(), "--")] * 3]
    assert looks[0][1] == "-"
    assert looks[0][0] not in (ORANGE.lower(), GREY.lower())
    crosses = [line for line in panel.get_lines() if line.get_marker() == "x"]
    assert [list(cross.get_xdata()) for cross in crosses] == [[1], [1]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "best",
        "trial that was stopped early",
        "trial without a value",
    ]
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        "visual.\ndropout",
        "visual.\noptimizer.\nkind",
        "visual/\ntop1",
    ]
    with Image.open(tmp_path / "parallel.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 10


def test_parallel_coordinates_have_an_axis_a_metric(tmp_path: Path, drawn: list[Figure]) -> None:
    parallel_plot.draw(tmp_path / "parallel.png", "sweep", TRIALS, SWEPT, TOP1, LOSS)
    panel = drawn[0].axes[0]
    first = next(line for line in panel.get_lines() if len(set(line.get_xdata())) > 1)
    assert list(first.get_ydata()) == pytest.approx([0.5, 0.0, 1 / 3, 1 / 3])
    plot.draw(tmp_path / "sweep.png", "sweep", TRIALS, SWEPT, TOP1, LOSS)
    assert [panel.get_xlabel() for panel in drawn[1].axes] == ["", "", "visual.dropout", "visual.optimizer.kind"]


@pytest.mark.parametrize("trials", [[], TRIALS[3:4], TRIALS[:1]])
def test_few_trials_can_be_drawn(tmp_path: Path, drawn: list[Figure], trials: list[Trial]) -> None:
    parallel_plot.draw(tmp_path / "parallel.png", "sweep", trials, SWEPT, TOP1, LOSS)
    front_plot.draw(tmp_path / "front.png", "sweep", trials, (TOP1, LOSS))
    plot.draw(tmp_path / "sweep.png", "sweep", trials, SWEPT, TOP1, LOSS)
    assert len(drawn) == 3


def test_the_front_is_ringed_and_connected(tmp_path: Path, drawn: list[Figure]) -> None:
    front_plot.draw(tmp_path / "front.png", "sweep", TRIALS, (TOP1, LOSS))
    (panel,) = drawn[0].axes
    rings = [line for line in panel.get_lines() if line.get_label() == "point on the front"]
    assert [(*ring.get_xdata(), *ring.get_ydata()) for ring in rings] == [(0.5, 2.0), (0.9, 3.0)]
    assert any(list(line.get_xdata()) == [0.5, 0.9] for line in panel.get_lines())
    hollow = [line for line in panel.get_lines() if line.get_label() == "point without a finished trial"]
    assert [list(line.get_xdata()) for line in hollow] == [[0.3]]
    assert panel.get_xlabel() == "visual/top1, higher is better"


def test_three_metrics_have_three_panels(tmp_path: Path, drawn: list[Figure]) -> None:
    third = Metric("visual", "top5", "max")
    trials = [
        Trial(
            f"t{number}", {"visual.dropout": 0.1 * number}, 0, "finished", 0.5, scores={**one.scores, str(third): 1.0}
        )
        for number, one in enumerate(TRIALS[:2])
    ]
    front_plot.draw(tmp_path / "front.png", "sweep", trials, (TOP1, LOSS, third))
    assert len(drawn[0].axes) == 3
