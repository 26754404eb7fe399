"""Pictures: names that can be read wherever their points are, and nothing that words could break."""

from __future__ import annotations

import io
import itertools
import math

import matplotlib.colors
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MODELS, NASTY, analyses, words
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from groundray.analysis.report.figures import MOST_UPRIGHT, bars, forest, lists, pictures, scatter, spread
from groundray.analysis.report.labels import NEAR, place
from groundray.analysis.report.plotting import COLOURS, SHAPES, look, png, svg
from groundray.analysis.result import Analysis, Bars, Listed, Lists, Measure, Point, Scatter, Spread, Value


def names(panel: Axes) -> list[Annotation]:
    return [text for text in panel.texts if isinstance(text, Annotation) and text.get_text()]


def boxes(texts: list[Text]) -> list[Bbox]:
    return [Text.get_window_extent(text) for text in texts]


def assert_apart(found: list[Bbox]) -> None:
    for one, other in itertools.combinations(found, 2):
        assert not one.overlaps(other)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200)), min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(1, 90), st.floats(5, 15)), min_size=40, max_size=40),
)
def test_boxes_neither_overlap_nor_leave_the_bounds(
    anchors: list[tuple[float, float]], sizes: list[tuple[float, float]]
) -> None:
    points = np.array(anchors)
    placed = place(np.array(sizes[: len(anchors)]), points, (0.0, 0.0, 300.0, 200.0), points, gap=4.0)
    there = [Bbox.from_extents(*box) for box in placed if box]
    assert_apart(there)
    for box, size in zip(placed, sizes, strict=False):
        if box:
            left, bottom, right, top = box
            assert (right - left, top - bottom) == pytest.approx(size)
            assert left >= 0
            assert bottom >= 0
            assert right <= 300
            assert top <= 200


def test_a_line_to_a_name_passes_no_other() -> None:
    """Names of points that lie close find room only farther away, on a side where no other is in the way."""
    size, bounds = (40.0, 8.0), (0.0, 0.0, 300.0, 200.0)
    anchors = np.array([[150.0, 100.0 + height] for height in (0, 4, 8, 12, 1, 5, 9, 2, 6)])
    placed = place(np.array([size] * len(anchors)), anchors, bounds, anchors, gap=4.0)
    far = 0
    for box, anchor in zip(placed, anchors, strict=True):
        if box is None:
            continue
        left, bottom, right, top = box
        edge = (min(max(anchor[0], left), right), min(max(anchor[1], bottom), top))
        if math.dist(anchor, edge) <= NEAR * 4:
            continue
        far += 1
        line = np.linspace(anchor, ((left + right) / 2, (bottom + top) / 2), 1000)
        for other in (one for one in placed if one and one != box):
            assert not ((line > other[:2]) & (line < other[2:])).all(axis=1).any()
    assert far >= 2


def test_a_lone_name_stands_at_its_point_and_one_without_room_nowhere() -> None:
    anchor = np.array([[50.0, 50.0]])
    (box,) = place(np.array([[20.0, 8.0]]), anchor, (0.0, 0.0, 100.0, 100.0), anchor, gap=4.0)
    assert box == pytest.approx((54, 46, 74, 54))
    assert place(np.array([[200.0, 8.0]]), anchor, (0.0, 0.0, 100.0, 100.0), anchor, gap=4.0) == [None]


def test_a_name_covers_no_point_where_there_is_a_way() -> None:
    anchor, right = np.array([[50.0, 50.0]]), np.array([[60.0, 50.0]])
    (box,) = place(np.array([[20.0, 8.0]]), anchor, (0.0, 0.0, 100.0, 100.0), np.concatenate([anchor, right]), gap=4.0)
    assert box == pytest.approx((26, 46, 46, 54))


def test_a_name_goes_farther_to_cover_no_point() -> None:
    anchor = np.array([[50.0, 50.0]])
    beside = 50 + 6 * np.array([[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y])  # in all the nearest places
    (box,) = place(np.array([[20.0, 8.0]]), anchor, (0.0, 0.0, 100.0, 100.0), np.concatenate([anchor, beside]), gap=4.0)
    assert box is not None
    left, bottom, right, top = box
    assert not any(left <= x <= right and bottom <= y <= top for x, y in beside)


@pytest.mark.parametrize("named", [12, 60])
def test_names_of_words_are_apart_and_in_their_panel(named: int) -> None:
    panels = {model: words(60, 9, seed, named) for seed, model in enumerate(MODELS)}
    figure = scatter(Scatter("axes/pc2-pc3", "PC2 against PC3", "PC2", "PC3", panels, shade="concreteness"))
    figure.draw_without_rendering()
    shown = figure.axes[: len(MODELS)]
    assert [panel.get_title(loc="left").partition(" (")[0] for panel in shown] == list(MODELS)
    for panel in shown:
        written = names(panel)
        assert_apart(boxes([*written]))
        area = panel.get_window_extent()
        for box in boxes([*written]):
            assert area.padded(1).contains(box.x0, box.y0)
            assert area.padded(1).contains(box.x1, box.y1)
        missing = named - len(written)
        assert (f"{missing} of {named} names had no room" in panel.get_title(loc="left")) == (missing > 0)
    assert NASTY in {text.get_text() for panel in shown for text in names(panel)}


def test_many_categories_are_named_where_they_lie() -> None:
    figure = scatter(Scatter("tsne", "t-SNE", "", "", {"grounded": words(400, 40, 1, named=0)}))
    (panel,) = figure.axes
    assert len(names(panel)) > 20
    assert {text.get_text() for text in names(panel)} <= {f"category {number}" for number in range(40)}
    assert_apart(boxes([*names(panel)]))
    assert not figure.legends


def test_few_categories_differ_in_colour_and_shape_and_are_in_the_legend() -> None:
    figure = scatter(Scatter("tsne", "t-SNE", "", "", {"grounded": words(90, 9, 1)}))
    (panel,) = figure.axes
    looks = {(tuple(one.get_facecolor()[0]), str(one.get_paths()[0].vertices)) for one in panel.collections}
    assert len(looks) == 9
    assert [text.get_text() for text in figure.legends[0].texts][:2] == ["shape", "kind"]


def test_looks_are_all_different() -> None:
    assert len({look(number) for number in range(len(COLOURS) * len(SHAPES))}) == len(COLOURS) * len(SHAPES)


def test_points_that_are_not_finite_are_counted() -> None:
    points = (Point("a", 0.0, 0.0), Point("b", math.nan, 1.0), Point("c", 1.0, math.inf))
    figure = scatter(Scatter("one", "One", "x", "y", {"grounded": points, "empty": ()}))
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["grounded (2 not finite)", "empty"]


def drawn_x(panel: Axes, hollow: bool) -> list[float]:
    """The places along x of the markers that are filled, or that are not."""
    lines = [line for line in panel.lines if line.get_marker() not in ("None", None, "")]
    return [float(line.get_xdata()[0]) for line in lines if (line.get_markerfacecolor() == "#ffffff") is hollow]  # type: ignore[index]


def test_a_measure_is_drawn_with_its_interval_beside_what_is_published() -> None:
    measure = Measure(
        "r",
        "Pearson r",
        52,
        {"ungrounded": Value(0.1, 0.05, 0.2), "grounded": Value(0.8, 0.75, 0.83), "broken": Value(math.nan)},
        published={"ungrounded": 0.104, "grounded": 0.6615, "relational": 0.6948},
    )
    (panel,) = forest([measure]).axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["ungrounded", "grounded", "broken", "relational"]
    assert drawn_x(panel, hollow=False) == [0.1, 0.8]
    assert drawn_x(panel, hollow=True) == [0.104, 0.6615, 0.6948]
    intervals = [tuple(line.get_xdata()) for line in panel.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert intervals == [(0.05, 0.2), (0.75, 0.83)]
    assert [text.get_text() for text in panel.texts] == ["not a number"]


def test_a_spread_shows_quartiles() -> None:
    values = {"ungrounded": tuple(np.arange(101) / 100), "grounded": (0.5,), "text-only": ()}
    (panel,) = spread(Spread("s", "S", "silhouette", {"all": values})).axes
    first, second = panel.patches
    assert (first.get_x(), first.get_x() + first.get_width()) == pytest.approx((0.25, 0.75))  # type: ignore[attr-defined]
    assert second.get_width() == 0  # type: ignore[attr-defined]
    assert drawn_x(panel, hollow=False) == [0.5, 0.5]
    assert [text.get_text() for text in panel.texts] == ["none"]
    assert panel.get_yticklabels()[0].get_text() == "all (n\u00a0=\u00a0101 / 1 / 0)"


def test_a_regression_line_is_that_of_least_squares() -> None:
    points = words(30, 3, 2, named=0)
    panels = {"m": points, "one point": points[:1], "upright": tuple(Point("w", 2.0, float(y)) for y in range(5))}
    figure = scatter(Scatter("pc1", "PC1", "PC1", "concreteness", panels, line=True))
    drawn, *others = figure.axes
    (line,) = drawn.lines
    slope, at_zero = np.polyfit([point.x for point in points], [point.y for point in points], 1)
    x, y = line.get_data()
    assert (min(x), max(x)) == (min(point.x for point in points), max(point.x for point in points))
    np.testing.assert_allclose(y, slope * np.array(x) + at_zero)
    assert not any(panel.lines for panel in others)  # no line of one point, or of one x
    assert not scatter(Scatter("pc1", "PC1", "PC1", "concreteness", panels)).axes[0].lines


def test_names_of_bars_side_by_side_do_not_overlap() -> None:
    groups = {f"human or not: PC{axis}": {"m": Value(0.5, 0.4, 0.6)} for axis in range(MOST_UPRIGHT)}
    figure = bars(Bars("axes/contrasts", "Contrasts", "r", groups, dict.fromkeys(groups, 6234)))
    assert_apart(boxes(figure.axes[0].get_xticklabels()))


def test_strata_are_bars_and_no_panels() -> None:
    whole, part = (Measure(key, key, 9, {"m": Value(0.5)}) for key in ("set/rho", "set/by/verbs/rho"))
    groups = Bars("set-strata", "Strata", "rho", {"all": whole.values, "verbs": part.values})
    found = {name: drawing() for name, _, drawing in pictures(Analysis("similarity", "", (whole, part), (), (groups,)))}
    assert list(found) == ["measures", "set-strata"]
    assert [panel.get_title(loc="left") for panel in found["measures"].axes] == ["set/rho (n\u00a0=\u00a09)"]


def picture_of(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "JPEG")
    return file.getvalue()


def test_lists_show_ranks_in_order_and_join_equal_words() -> None:
    before = (Listed("horse", 1), Listed("mare", 2), Listed("$pony$", 3), Listed("zebra", 2914, marked=True))
    after = (Listed("mare", 1), Listed("zebra", 2, marked=True), Listed("foal", 3))
    picture = Lists("composition/striped", "Striped", {"ungrounded": before, "grounded": after})
    (panel,) = lists(picture).axes
    written = {text.get_text(): text.get_position() for text in panel.texts}
    assert {"ungrounded", "grounded", "horse", "$pony$", "2,914", "\N{VERTICAL ELLIPSIS}"} <= set(written)
    left = {text.get_text(): text for text in panel.texts if text.get_position()[0] < 0.5}
    rows = [left[word].get_position()[1] for word in ("horse", "mare", "$pony$", "\N{VERTICAL ELLIPSIS}", "zebra")]
    assert rows == [0, 1, 2, 3, 4]
    assert left["zebra"].get_weight() == "bold"
    lines = {tuple(line.get_ydata()): line for line in panel.lines}
    assert set(lines) == {(1, 0), (4, 1)}  # mare and zebra
    assert lines[4, 1].get_linewidth() > lines[1, 0].get_linewidth()  # the target
    assert_apart(boxes([text for text in panel.texts if text.get_text()]))


def test_lists_show_images_below_and_are_the_same_bytes_again() -> None:
    lists_of = {"m": (Listed("a", 1), Listed("b", 2, marked=True)), "n": (Listed("b", 1, marked=True), Listed("c", 2))}
    picture = Lists("composition/1", "One", lists_of, (picture_of("red"), picture_of("blue")))
    panel, *frames = lists(picture).axes
    assert [len(frame.images) for frame in frames] == [1, 1]
    red, green, blue = np.asarray(frames[0].images[0].get_array())[15, 20]
    assert red > 200 > 60 > max(green, blue)
    assert max(frame.get_position().y1 for frame in frames) <= panel.get_position().y0
    assert svg(lists(picture), "key") == svg(lists(picture), "key")
    assert "data:image/png;base64" in svg(lists(picture), "key")
    assert lists(Lists("none", "None", {"m": (), "n": ()})).axes


def test_bars_stand_at_their_values_with_intervals() -> None:
    groups = {
        "adjectives": {"ungrounded": Value(0.2, 0.1, 0.3), "grounded": Value(-0.4, -0.5, -0.3)},
        "verbs": {"grounded": Value(0.6), "text-only": Value(math.nan)},
    }
    (panel,) = bars(Bars("similarity/strata", "Strata", "rho", groups, {"adjectives": 1111}), MODELS).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["adjectives\n(n\u00a0=\u00a01,111)", "verbs"]
    assert [bar.get_height() for bar in panel.patches] == [0.2, -0.4, 0.6]  # type: ignore[attr-defined]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in panel.patches]  # type: ignore[attr-defined]
    assert middles == pytest.approx([-0.5 + 0.8 / 3.6, -0.5 + 2.8 / 3.6, 1 - 0.5 + 2.8 / 3.6])
    assert drawn_x(panel, hollow=False) == pytest.approx(middles)
    ends = [tuple(line.get_ydata()) for line in panel.lines if len(line.get_ydata()) == 2]  # type: ignore[arg-type]
    assert ends == [(0.1, 0.3), (-0.5, -0.3), (0.6, 0.6), (0, 0)]
    assert [text.get_text() for text in panel.texts] == ["–"]  # noqa: RUF001
    assert [bar.get_facecolor()[:3] for bar in panel.patches] == [
        matplotlib.colors.to_rgb(look(place).colour) for place in (0, 2, 2)
    ]


def test_many_groups_of_bars_are_rows_from_above() -> None:
    groups = {
        f"group {number}": {"grounded": Value(number, number - 1, number + 1)} for number in range(MOST_UPRIGHT + 1)
    }
    (panel,) = bars(Bars("most-improved", "Most improved", "change", groups)).axes
    assert [label.get_text() for label in panel.get_yticklabels()] == list(groups)
    assert panel.get_ylim()[0] > panel.get_ylim()[1]
    assert [bar.get_width() for bar in panel.patches] == list(range(MOST_UPRIGHT + 1))  # type: ignore[attr-defined]
    assert drawn_x(panel, hollow=False) == list(range(MOST_UPRIGHT + 1))


@pytest.mark.thorough
def test_files_are_the_same_each_time_and_hold_no_ids_of_another_figure() -> None:
    def made() -> list[tuple[str, Figure]]:
        return [(name, drawing()) for one in analyses() for name, _, drawing in pictures(one)]

    for (name, figure), (_, again) in zip(made(), made(), strict=True):
        element = svg(figure, name)
        assert element == svg(again, name)
        assert png(figure) == png(again)
        assert element.startswith("<svg")
        assert "<!--" not in element
        assert "script" not in element
        assert "currentColor" in element
        for wanted in (' id="', 'href="#', "url(#"):
            assert element.count(wanted) == element.count(f"{wanted}{name}-")


def test_a_model_looks_the_same_in_the_pictures_of_all_analyses() -> None:
    """The colour of a model does not depend on which other models have values."""
    one = Measure("recall", "Recall", 9, {MODELS[2]: Value(0.5, 0.4, 0.6)})
    (panel,) = forest([one], MODELS).axes
    groups = {"visual": {MODELS[2]: (0.1, 0.2, 0.3)}}
    (rows,) = spread(Spread("norms/f1", "F1", "F1", groups), MODELS).axes
    for drawn in (panel, rows):
        assert {line.get_color() for line in drawn.lines} == {look(2).colour}
    assert [label.get_text() for label in panel.get_yticklabels()] == [MODELS[2]]
