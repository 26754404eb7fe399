"""The summary that opens a report: what changed against the control, in one picture and five sentences.

The sentences are made from the measures: each names a measure, the figures of both models, their difference with its
95% interval, and whether it is significant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from groundray.analysis.report.numbers import MINUS, format_p
from groundray.analysis.report.plotting import GREY, PAPER, Look, legend, look, marker, new, settle, style, tidy
from groundray.analysis.result import Analysis, Measure, Value

SENTENCES = 5
CONTROLS = ("text-only", "ungrounded")  # in the order of preference
TREATMENTS = ("grounded", "relational")
ALPHA = 0.05  # level of significance


@dataclass(frozen=True)
class KeyMeasure:
    """A measure that the summary shows.

    Attributes:
        analysis: name of its analysis.
        key: pattern of its key.
        label: its name in a sentence, such as "the correlation of the first axis with concreteness".
        short: its name in the picture.
        better: the direction in which the measure improves.
        decimals: decimals of its figures.
    """

    analysis: str
    key: re.Pattern[str]
    label: str
    short: str
    better: Literal["higher", "lower"] = "higher"
    decimals: int = 3

    def format(self, number: float) -> str:
        """Format a figure of this measure."""
        return f"{number:.{self.decimals}f}".replace("-", MINUS)

    def interval(self, value: Value) -> str:
        """Return the 95% interval of a figure in words, or nothing if there is none."""
        if value.low is None or value.high is None or not (math.isfinite(value.low) and math.isfinite(value.high)):
            return ""
        return f"95% interval {self.format(value.low)} to {self.format(value.high)}"


# in the order in which sentences are chosen
KEY_MEASURES = (
    KeyMeasure(
        "axes",
        re.compile(r"pc1/words/pearson"),
        "the correlation of the first principal axis with concreteness",
        "first axis and concreteness, words (r)",
    ),
    KeyMeasure("norms", re.compile(r"f1/all/median"), "the median F1 of features", "F1 of all features"),
    KeyMeasure(
        "categories",
        re.compile(r"silhouette/rest/median"),
        "the median silhouette of categories",
        "silhouette of categories",
    ),
    KeyMeasure(
        "composition",
        re.compile(r"rank/median"),
        "the median rank of the word that a phrase describes",
        "rank of a phrase's word (low is good)",
        "lower",
        decimals=1,
    ),
    KeyMeasure(
        "similarity",
        re.compile(r"[^/]*simlex[^/]*/spearman", re.I),
        "the correlation with SimLex-999",
        "SimLex-999 (rho)",
    ),
    KeyMeasure("norms", re.compile(r"f1/visual/median"), "the median F1 of visual features", "F1 of visual features"),
    KeyMeasure(
        "ratings",
        re.compile(r"[^/]*binder[^/]*/group/visual/spearman", re.I),
        "the held-out correlation with visual ratings",
        "visual ratings (rho)",
    ),
    KeyMeasure(
        "axes",
        re.compile(r"pc1/categories/pearson"),
        "the correlation of the first axis with the concreteness of categories",
        "first axis and concreteness, categories (r)",
    ),
    KeyMeasure(
        "retrieval",
        re.compile(r"grounding/text_to_image/recall_at_10"),
        "recall@10 from caption to image",
        "recall@10, caption to image",
    ),
    KeyMeasure(
        "retrieval",
        re.compile(r"grounding/image_to_text/recall_at_10"),
        "recall@10 from image to caption",
        "recall@10, image to caption",
    ),
    KeyMeasure("relations", re.compile(r"predicate/top1"), "top-1 accuracy of predicates", "predicates, top-1"),
)


@dataclass(frozen=True)
class Row:
    """A key measure as it was measured."""

    kind: KeyMeasure
    measure: Measure


@dataclass(frozen=True)
class Summary:
    """The comparison of a treatment with its control.

    Attributes:
        control: the model that the treatment is compared with; None if there is only one model.
        treatment: the model of interest; None if there is no model.
        rows: the key measures that were measured.
        sentences: at most five.
    """

    control: str | None
    treatment: str | None
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]


def summarize(analyses: Iterable[Analysis], models: Sequence[str]) -> Summary:
    """Summarize analyses of some models.

    The control is `text-only`, else `ungrounded`, else the first model; the treatment is `grounded`, else
    `relational`, else the last model.
    """
    measured = {(analysis.name, measure.key): measure for analysis in analyses for measure in analysis.measures}
    rows = tuple(
        Row(kind, measure)
        for kind in KEY_MEASURES
        for (analysis, key), measure in measured.items()
        if analysis == kind.analysis and kind.key.fullmatch(key)
    )
    treatment = next((name for name in TREATMENTS if name in models), models[-1] if models else None)
    others = [name for name in models if name != treatment]
    control = next((name for name in CONTROLS if name in others), others[0] if others else None)
    return Summary(control, treatment, rows, tuple(_sentences(rows, control, treatment)))


def _sentences(rows: Sequence[Row], control: str | None, treatment: str | None) -> list[str]:
    """Compare measures that both models have; fill up with measures of the treatment alone."""
    if treatment is None or not rows:
        return ["No key measure was made: the sections below say which data are missing."]
    compared = [row for row in rows if control and _is_measured(row, control) and _is_measured(row, treatment)]
    alone = [row for row in rows if row not in compared and _is_measured(row, treatment)]
    sentences = [_comparison(row, str(control), treatment) for row in compared[:SENTENCES]]
    if control is None:
        sentences.append(f"There is no control: {treatment} is the only model.")
    room = SENTENCES - len(sentences)
    return sentences + [_figure(row, treatment) for row in alone[:room]]


def _is_measured(row: Row, model: str) -> bool:
    value = row.measure.values.get(model)
    return value is not None and math.isfinite(value.value)


def _figure(row: Row, model: str) -> str:
    kind, value = row.kind, row.measure.values[model]
    interval = f" ({kind.interval(value)})" if kind.interval(value) else ""
    return f"{_capitalised(kind.label)} is {kind.format(value.value)} for {model}{interval}."


def _comparison(row: Row, control: str, treatment: str) -> str:
    values, kind = row.measure.values, row.kind
    before, after = values[control], values[treatment]
    figures = (
        f"{_capitalised(kind.label)} is {kind.format(after.value)} for {treatment} and "
        f"{kind.format(before.value)} for {control}"
    )
    difference, p = _difference(row.measure, control, treatment)
    if difference.value == 0:
        return f"{figures}: no difference ({_significance(kind, difference, p, row.measure.items)})."
    direction = "higher" if difference.value > 0 else "lower"
    return (
        f"{figures}: {direction} by {kind.format(abs(difference.value))} ("
        f"{_significance(kind, difference, p, row.measure.items)})."
    )


def _difference(measure: Measure, control: str, treatment: str) -> tuple[Value, float | None]:
    """Return treatment minus control with its interval, and p of its test."""
    for difference in measure.differences:
        value = difference.value
        if (difference.first, difference.other) == (control, treatment):
            return value, difference.p
        if (difference.first, difference.other) == (treatment, control):
            low, high = (None if end is None else -end for end in (value.high, value.low))
            return Value(-value.value, low, high), difference.p
    return Value(measure.values[treatment].value - measure.values[control].value), None


def _significance(kind: KeyMeasure, difference: Value, p: float | None, items: int) -> str:
    """Say whether a difference is significant: by its test, else by its interval."""
    interval = kind.interval(difference)
    if p is not None and math.isfinite(p):
        verdict = _verdict(kind, difference) if p < ALPHA else "not significant"
        shown = f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{format_p(p)}".replace("=\N{NO-BREAK SPACE}<", "<")
        return f"{interval}, {verdict}, {shown}" if interval else f"{verdict}, {shown}"
    if not interval:
        return f"not tested: n = {items:,}"
    assert difference.low is not None
    assert difference.high is not None
    excludes_zero = difference.low > 0 or difference.high < 0
    return f"{interval}, {_verdict(kind, difference) if excludes_zero else 'not significant'} by this interval"


def _verdict(kind: KeyMeasure, difference: Value) -> str:
    """Return whether a significant difference is an improvement."""
    improved = (difference.value > 0) == (kind.better == "higher")
    return f"significantly {'better' if improved else 'worse'}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


@style()
def draw(summary: Summary, models: Sequence[str]) -> Figure:
    """Draw a row for each key measure, on a scale of its own: every model with its interval, published values hollow.

    Args:
        models: all models, whose looks are the same in every picture of a report.
    """
    measured = {name for row in summary.rows for name in (*row.measure.values, *row.measure.published)}
    looks = {name: look(number) for number, name in enumerate(dict.fromkeys((*models, *sorted(measured))))}
    looks = {name: drawn for name, drawn in looks.items() if name in measured}
    figure = new(7.6, 0.7 + (0.42 + 0.13 * len(looks)) * len(summary.rows))
    panels = figure.subplots(len(summary.rows), 1, squeeze=False).ravel()
    for panel, row in zip(panels, summary.rows, strict=True):
        _draw_row(panel, row.measure, looks)
        label = f"{row.kind.short}\nn = {row.measure.items:,}"
        panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5)
    handles = {name: marker(drawn) for name, drawn in looks.items()}
    if any(row.measure.published for row in summary.rows):
        handles["published"] = marker(Look(GREY, "o"), hollow=True)
    legend(figure, handles, columns=5)
    settle(figure)
    return figure


def _draw_row(panel: Axes, measure: Measure, looks: Mapping[str, Look]) -> None:
    for row, (model, (colour, shape)) in enumerate(looks.items()):
        published = measure.published.get(model)
        if published is not None and math.isfinite(published):
            panel.plot(published, row, shape, color=colour, markerfacecolor="none", markersize=9, zorder=5)
        value = measure.values.get(model)
        if value is None or not math.isfinite(value.value):
            continue
        ends = [value.value if end is None or not math.isfinite(end) else end for end in (value.low, value.high)]
        panel.plot(ends, (row, row), color=colour, linewidth=1.8, zorder=3)
        panel.plot(value.value, row, shape, color=colour, markersize=7.5, markeredgecolor=PAPER, zorder=4)
    panel.set_yticks([])
    panel.set_ylim(len(looks) - 0.4, -0.6)
    panel.locator_params(axis="x", nbins=6)
    panel.margins(x=0.06)
    panel.tick_params(axis="x", labelsize=7.5)
    tidy(panel)
    panel.grid(visible=False, axis="y")
