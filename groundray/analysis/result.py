"""What an analysis found of one or several models: figures with their intervals, tables, and what to draw.

Every analysis takes arrays and gives an `Analysis`; whoever shows one (a screen, JSON, MLflow, the report) needs to
know nothing else. Models are told apart by their names.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Cell = str | float | int | None


@dataclass(frozen=True)
class Value:
    """A figure and its 95% interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """How much more one model has than another, `other` − `first`, over the same items.

    Attributes:
        p: of a paired test over the items, corrected (Holm 1979) for all differences of the measure; None without test.
    """

    first: str
    other: str
    value: Value
    p: float | None = None


@dataclass(frozen=True)
class Measure:
    """A figure of each model.

    Attributes:
        key: in JSON and MLflow, below the analysis's name: `pc1/words/pearson`.
        name: for a person: `PC1 and concreteness, words: Pearson r`.
        items: words, categories, features or pairs that it was measured over.
        values: by model.
        differences: of each model from each that stands before it.
        published: by the paper's model, `ungrounded`, `grounded` or `relational`; empty where nothing is published.
    """

    key: str
    name: str
    items: int
    values: dict[str, Value]
    differences: tuple[Difference, ...] = ()
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows for a person; numbers stay numbers, so that they can be sorted."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Point:
    """A word in a plane.

    Attributes:
        group: its category.
        shade: a number to colour it by, such as concreteness; None for none.
        named: whether its text is written beside it.
    """

    text: str
    x: float
    y: float
    group: str | None = None
    shade: float | None = None
    named: bool = False


@dataclass(frozen=True)
class Scatter:
    """Words in a plane, one panel a model, with the same axes' names."""

    key: str
    title: str
    x: str
    y: str
    panels: dict[str, tuple[Point, ...]]
    shade: str | None = None


@dataclass(frozen=True)
class Spread:
    """How a figure is spread over many items: quartiles of each group, side by side for the models.

    Attributes:
        groups: by group and model, the figure of each item.
    """

    key: str
    title: str
    y: str
    groups: dict[str, dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        name: of the analysis: `axes`, `norms`, `categories`, `composition`, `similarity`, `retrieval`, `relations`.
        about: what was measured and how, with its source, in a few sentences.
        left_out: what could not be used, and how much: {"words out of vocabulary": 3}. Nothing is dropped silently.
    """

    name: str
    about: str
    measures: tuple[Measure, ...]
    tables: tuple[Table, ...] = ()
    pictures: tuple[Scatter | Spread, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
