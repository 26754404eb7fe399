"""The result of an analysis of one or several models: figures with intervals, tables, and data to draw.

Every analysis takes arrays and returns an `Analysis`. The terminal, JSON, MLflow and the report need nothing else.
Models are identified by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Cell = str | float | int | None
STRATUM = "/by/"  # in the key of a measure of a part of the items, as `simlex/by/verbs/spearman`; bars show these


@dataclass(frozen=True)
class Value:
    """A figure, and its 95% interval if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


class ReadOff(float):
    """A published number that was read off a figure, and not printed. It is shown as approximate."""


@dataclass(frozen=True)
class Difference:
    """The difference `other` − `first` of two models over the same items.

    Attributes:
        p: p value of a paired test over the items, corrected (Holm 1979) for all differences of the measure; None if
            there is no test.
    """

    first: str
    other: str
    value: Value
    p: float | None = None


@dataclass(frozen=True)
class Measure:
    """A figure for each model.

    Attributes:
        key: name in JSON and MLflow, below the analysis's name, such as `pc1/words/pearson`.
        name: name for display, such as `PC1 and concreteness, words: Pearson r`.
        items: number of words, categories, features or pairs.
        values: value of each model.
        differences: difference of each model from each earlier one.
        published: the paper's values for `ungrounded`, `grounded` and `relational`, each a `ReadOff` if it was read off
            a figure; empty if none was published.
    """

    key: str
    name: str
    items: int
    values: dict[str, Value]
    differences: tuple[Difference, ...] = ()
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table for display. Numbers stay numbers, so that rows can be sorted."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Point:
    """A word in a plane.

    Attributes:
        group: category of the word.
        shade: number to colour it by, such as concreteness; None for none.
        named: write the text beside the point.
    """

    text: str
    x: float
    y: float
    group: str | None = None
    shade: float | None = None
    named: bool = False


@dataclass(frozen=True)
class Scatter:
    """Words in a plane: one panel per model, with the same axis labels.

    Attributes:
        shade: name of the points' shade.
        line: draw each panel's regression line, of y on x.
    """

    key: str
    title: str
    x: str
    y: str
    panels: dict[str, tuple[Point, ...]]
    shade: str | None = None
    line: bool = False


@dataclass(frozen=True)
class Spread:
    """The distribution of a figure over items, by group and model.

    Attributes:
        groups: figure of each item, by group and model.
    """

    key: str
    title: str
    y: str
    groups: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Bars:
    """Figures with their intervals, as bars by group and model.

    Attributes:
        y: name of the figure, such as `Spearman rho`.
        groups: figure by group, such as a part of speech, and model. A group need not have all models.
        items: number of items of each group, shown with its name; a group without one has its name alone.
    """

    key: str
    title: str
    y: str
    groups: dict[str, dict[str, Value]]
    items: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Listed:
    """A word in a list of nearest words.

    Attributes:
        rank: its rank in the whole vocabulary, from 1.
        marked: it is the word that was looked for.
    """

    text: str
    rank: int
    marked: bool = False


@dataclass(frozen=True)
class Lists:
    """Nearest words before and after, a list for each of two models, nearest first.

    Attributes:
        lists: words by model. Ranks may leave out words.
        images: small JPEG or PNG images to show below, such as those nearest to the phrase.
    """

    key: str
    title: str
    lists: dict[str, tuple[Listed, ...]]
    images: tuple[bytes, ...] = ()


Picture = Scatter | Spread | Bars | Lists


@dataclass(frozen=True)
class Analysis:
    """The result of one analysis.

    Attributes:
        name: a key of ANALYSES, such as `axes`.
        about: what was measured and how, with its source, in a few sentences.
        left_out: counts of all that could not be used, such as {"words out of vocabulary": 3}.
    """

    name: str
    about: str
    measures: tuple[Measure, ...]
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
