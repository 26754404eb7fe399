"""Invented analyses for tests of reports and figures, with every kind of content."""

from __future__ import annotations

import math

import numpy as np

from groundray.analysis.result import Analysis, Bars, Difference, Measure, Point, Scatter, Spread, Table, Value

MODELS = ("ungrounded", "text-only", "grounded", "relational")
GROUPS = ("shape", "kind", "colour", "texture", "size", "relation", "abstract noun", "abstract adjective", "adverb")
NASTY = '<script>alert("x")</script> & $\\frac{1}$ <!-- -->'  # hostile text, as a file may hold


def words(count: int, groups: int, seed: int, named: int = 20) -> tuple[Point, ...]:
    """Return words scattered around their groups' centres; the first `named` of them have labels."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(groups, 2)) * 2
    return tuple(
        Point(
            text=NASTY if number == 0 else f"word {number}",
            x=float(centres[number % groups, 0] + draw.normal() * 0.4),
            y=float(centres[number % groups, 1] + draw.normal() * 0.4),
            group=GROUPS[number % groups] if groups <= len(GROUPS) else f"category {number % groups}",
            shade=float(draw.uniform(1, 5)),
            named=number < named,
        )
        for number in range(count)
    )


def measure(key: str, name: str, start: float, published: bool = True) -> Measure:
    values = {
        model: Value(start + 0.15 * place, start + 0.15 * place - 0.05, start + 0.15 * place + 0.04)
        for place, model in enumerate(MODELS)
    }
    differences = tuple(
        Difference(first, other, Value(values[other].value - values[first].value, 0.01, 0.4), p=0.0004 * (number + 1))
        for number, (first, other) in enumerate(
            (first, other) for place, first in enumerate(MODELS) for other in MODELS[place + 1 :]
        )
    )
    paper = {"ungrounded": 0.104, "grounded": 0.6615, "relational": 0.6948} if published else {}
    return Measure(key, name, 52, values, differences, paper)


def analyses() -> tuple[Analysis, ...]:
    draw = np.random.default_rng(7)
    axes = Analysis(
        "axes",
        "Principal axes of the words' embeddings against human ratings (Brysbaert et al. 2014).",
        (
            measure("pc1/words/pearson", "PC1 and concreteness, words: Pearson r", 0.1),
            measure("pc1/words/spearman", "PC1 and concreteness, words: Spearman rho", 0.2, published=False),
            Measure("nan", "some measure without a value", 3, {"grounded": Value(math.nan), "relational": Value(1)}),
        ),
        (Table("Words along PC1", ("word", "grounded", "rating"), ((NASTY, 30.86, 4.97), ("zebra", 24.7, None))),),
        (
            Scatter(
                "axes/pc2-pc3",
                "PC2 against PC3",
                "PC2",
                "PC3",
                {model: words(60, 9, seed) for seed, model in enumerate(MODELS)},
                shade="concreteness",
            ),
        ),
        {"words out of vocabulary": 3, "duplicates": 0},
    )
    categories = Analysis(
        "categories",
        "Silhouettes of categories, cosine.",
        (measure("silhouette/median", "silhouette, median category", 0.05),),
        (),
        (
            Spread(
                "categories/silhouette",
                "Silhouette of each category",
                "silhouette",
                {
                    group: {model: tuple(draw.normal(0.1 * place, 0.1, size=40)) for place, model in enumerate(MODELS)}
                    for group in ("all categories", "a category whose name is so long that it takes two lines")
                },
            ),
            Scatter("tsne", "t-SNE", "", "", {model: words(2000, 40, 5, named=0) for model in MODELS[:2]}),
            Bars(
                "categories/most-improved",
                "Most improved categories",
                "silhouette",
                {NASTY: {model: Value(0.2, 0.1, 0.3) for model in MODELS}, "animal": {MODELS[0]: Value(-0.1)}},
                {NASTY: 40},
            ),
        ),
    )
    return axes, categories
