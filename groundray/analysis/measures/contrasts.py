"""How well an axis tells two sets of words apart: the rank-biserial correlation of its scores (Cureton 1956)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from groundray.analysis.inputs.category_contrasts import OTHERS, Contrast
from groundray.analysis.measures.correlation import Ranking, occurrences
from groundray.analysis.measures.statistics import Estimate, measure, slug
from groundray.analysis.result import Bars, Cell, Measure, Table

ABOUT = (
    "Contrasts: how well an axis tells two sets of categories apart, each word once, rated or not: the chance that a "
    "word of one set scores higher than one of the other, less that it scores lower, without the sign, which "
    "is the axis's; a table says which set is at which end. "
)


@dataclass(frozen=True)
class Sides:
    """The words of both sides of a contrast, each once.

    Attributes:
        rows: first row of each word.
        first: which of them are of the first side.
        both: number of words that are left out, as they are of both sides.
    """

    rows: Int[np.ndarray, " word"]
    first: Bool[np.ndarray, " word"]
    both: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Return the number of words of the first side, and of the other."""
        return int(self.first.sum()), int((~self.first).sum())

    @classmethod
    def of(cls, contrast: Contrast, words: Sequence[str], categories: Sequence[str]) -> Sides:
        """Return the sides of a contrast among words by category, a row for each category of a word."""
        row_of: dict[str, int] = {}
        of_word: dict[str, set[str]] = {}
        for row, (word, category) in enumerate(zip(words, categories, strict=True)):
            row_of.setdefault(word, row)
            of_word.setdefault(word, set()).add(category)

        def members(own: frozenset[str], others: frozenset[str]) -> Bool[np.ndarray, " word"]:
            taken = [others.isdisjoint(of) if OTHERS in own else not own.isdisjoint(of) for of in of_word.values()]
            return np.array(taken, dtype=np.bool_)

        first = members(contrast.of_first, contrast.of_other)
        other = members(contrast.of_other, contrast.of_first)
        one = first ^ other
        return cls(np.array(list(row_of.values()))[one], first[one], int((first & other).sum()))


@dataclass(frozen=True)
class ToldApart:
    """How well the axes tell the sides of a contrast apart.

    Attributes:
        measures: the effect of each axis, without its sign.
        first_is_high: whether the first side is at the high end of each axis, by model.
    """

    contrast: Contrast
    sides: Sides
    measures: tuple[Measure, ...]
    first_is_high: tuple[dict[str, bool], ...]


def told_apart(
    scores: Mapping[str, Float[np.ndarray, "row axis"]],
    contrasts: Sequence[Contrast],
    words: Sequence[str],
    categories: Sequence[str],
) -> tuple[ToldApart, ...]:
    """Return how well axes tell the sides of each contrast apart that has words on both.

    Args:
        scores: score on each axis, a row for each category of a word, by model.
    """
    found = []
    for contrast in contrasts:
        sides = Sides.of(contrast, words, categories)
        if not all(sides.sizes):
            continue
        effects = rank_biserial({model: rows[sides.rows] for model, rows in scores.items()}, sides.first)
        high = tuple({model: one.value >= 0 for model, one in of_axis.items()} for of_axis in effects)
        measures = tuple(
            measure(
                f"pc{axis + 1}/contrast/{slug(contrast.name)}/rank_biserial",
                f"PC{axis + 1}, {contrast.first} against {contrast.other}: rank-biserial correlation",
                len(sides.rows),
                {
                    model: one if one.value >= 0 else Estimate(-one.value, -one.resampled, -one.influence)
                    for model, one in of_axis.items()
                },
            )
            for axis, of_axis in enumerate(effects)
        )
        found.append(ToldApart(contrast, sides, measures, high))
    return tuple(found)


def table(apart: Sequence[ToldApart]) -> Iterator[Table]:
    """Return the table of all contrasts, axes and models, if there are contrasts."""
    rows: list[tuple[Cell, ...]] = []
    for one in apart:
        named = list(zip((one.contrast.first, one.contrast.other), one.sides.sizes, strict=True))
        for axis, (of, high) in enumerate(zip(one.measures, one.first_is_high, strict=True), start=1):
            for model, value in of.values.items():
                (top, tops), (bottom, bottoms) = named if high[model] else named[::-1]
                effect = (value.value, value.low, value.high)
                rows.append((one.contrast.name, f"PC{axis}", model, *effect, top, tops, bottom, bottoms))
    ends = ("high end", "words at the high end", "low end", "words at the low end")
    columns = ("contrast", "axis", "model", "rank-biserial r", "from", "to", *ends)
    if rows:
        yield Table("What each axis tells apart, with 95% intervals", columns, tuple(rows))


def bars(apart: Sequence[ToldApart]) -> Iterator[Bars]:
    """Return the picture of all contrasts and axes, if there are contrasts."""
    named = {f"{one.contrast.name}: PC{axis}": of for one in apart for axis, of in enumerate(one.measures, start=1)}
    if named:
        yield Bars(
            "axes/contrasts",
            "What each axis tells apart: 0 nothing, 1 all",
            "rank-biserial correlation",
            {name: of.values for name, of in named.items()},
            {name: of.items for name, of in named.items()},
        )


def rank_biserial(
    scores: Mapping[str, Float[np.ndarray, "word axis"]], first: Bool[np.ndarray, " word"]
) -> list[dict[str, Estimate]]:
    """Return how well each axis tells the first side from the other, by axis and model.

    The rank-biserial correlation is the chance that a word of the first side scores higher than one of the other, less
    the chance that it scores lower: 2 AUC − 1, from −1 to 1, 0 if the sides are alike. Both sides are resampled
    together, with the same resamples for all axes and models; a resample without one side has none.

    Raises:
        ValueError: a side has no word.
    """
    if first.all() or not first.any():
        raise ValueError(f"expected words on both sides of a contrast, got {int(first.sum())} of {len(first)} on one")
    columns = [(model, axis) for axis in range(next(iter(scores.values())).shape[1]) for model in scores]
    rankings = [Ranking.of(scores[model][:, axis]) for model, axis in columns]

    def found(counts: Float[np.ndarray, "resample word"]) -> Float[np.ndarray, "column resample"]:
        own = counts * first
        sizes, every = own.sum(axis=1), counts.sum(axis=1)
        pairs = sizes * (every - sizes)
        higher = [np.einsum("rw,rw->r", own, one.ranks(counts)) - sizes * (sizes + 1) / 2 for one in rankings]
        return np.where(pairs > 0, 2 * np.array(higher) / np.where(pairs > 0, pairs, 1.0) - 1, np.nan)

    whole = found(np.ones((1, len(first))))[:, 0]
    resampled = np.concatenate([found(counts) for counts in occurrences(np.arange(len(first)))], axis=1)
    estimates: list[dict[str, Estimate]] = [{} for _ in range(len(columns) // len(scores))]
    for place, (model, axis) in enumerate(columns):
        influence = _influence(scores[model][:, axis], first)
        estimates[axis][model] = Estimate(float(whole[place]), resampled[place], influence)
    return estimates


def _influence(scores: Float[np.ndarray, " word"], first: Bool[np.ndarray, " word"]) -> Float[np.ndarray, " word"]:
    """Return the derivative of the correlation by each word's weight, over the number of words: how much more of the
    other side a word beats, or is beaten by, than words of its side do on average (Sen 1960)."""
    influence = np.empty(len(scores))
    every = rankdata(scores)
    for side, sign in ((first, 1), (~first, -1)):
        below = (every[side] - rankdata(scores[side])) / (~side).sum()  # share of the other side, ties by half
        influence[side] = sign * 2 * (below - below.mean()) / side.sum()
    return influence
