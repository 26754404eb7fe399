"""Rank correlation of the cosines of word vectors with human ratings of similarity, of whole sets and of strata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.measures.correlation import paired_correlation_tests, spearman
from groundray.analysis.measures.directions import Vectors, check_directions, directions, places_of, row_blocks
from groundray.analysis.measures.statistics import FEWEST, ROUNDING, Scores, measure, slug
from groundray.analysis.result import STRATUM, Analysis, Bars, Cell, Measure, Table

FEWEST_IN_STRATUM = 10
ALL = "all"  # pairs of a set, beside its strata
DIGITS = 12  # of a cosine; words beside themselves have all the same
Pair = tuple[str, str, float]  # two words and their human score


def similarity(
    vectors: Vectors,
    words: Sequence[str],
    sets: Mapping[str, Sequence[Pair]],
    left_out: Mapping[str, int] | None = None,
    given: Mapping[str, int] | None = None,
    strata: Mapping[str, Mapping[str, Int[np.ndarray, " pair"]]] | None = None,
    about_strata: str = "",
) -> Analysis:
    """Compute Spearman's rho of cosines with human scores, for each set of word pairs and for each of its strata.

    Args:
        vectors: one row for each word.
        words: distinct words.
        sets: sets of pairs by name. A pair with an unknown word is omitted, as is a set that keeps fewer than FEWEST
            pairs; the table lists the number of pairs used.
        left_out: counts of what was omitted before; the result repeats them.
        given: number of pairs that each set has with those omitted before, of which the share used is taken.
        strata: indices of the pairs of each stratum, by set and name. A stratum that keeps fewer than FEWEST_IN_STRATUM
            pairs, or whose scores or cosines are all equal, is omitted and counted.
        about_strata: what the strata are of.

    Raises:
        ValueError: no set has enough pairs, all scores or cosines of a set are equal, or the vectors fail
            `check_directions`.
    """
    check_directions(vectors, words)
    place = places_of(words)
    measures: list[Measure] = []
    rows: list[tuple[Cell, ...]] = []
    stratified: dict[str, dict[str, Measure]] = {}
    few = flat = used = 0
    for name, pairs in sets.items():
        known = [number for number, pair in enumerate(pairs) if pair[0] in place and pair[1] in place]
        total, values = (given or {}).get(name, len(pairs)), [None] * len(vectors)
        if len(known) >= FEWEST:
            used += len(known)
            first, second = np.array([(place[pairs[one][0]], place[pairs[one][1]]) for one in known]).T
            cosines = {model: _cosines(own, first, second).round(DIGITS) for model, own in vectors.items()}
            ratings = np.array([pairs[one][2] for one in known], dtype=np.float64)
            try:
                found = {ALL: _measure(f"{slug(name)}/spearman", name, cosines, ratings)}
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            for stratum, members in (strata or {}).get(name, {}).items():
                own = np.isin(known, members)
                if own.sum() < FEWEST_IN_STRATUM:
                    few += 1
                    continue
                of_stratum = {model: one[own] for model, one in cosines.items()}
                if any(np.ptp(one) <= ROUNDING * np.abs(one).max() for one in (ratings[own], *of_stratum.values())):
                    flat += 1
                    continue
                key = f"{slug(name)}{STRATUM}{slug(stratum)}/spearman"
                found[stratum] = _measure(key, f"{name}, {stratum}", of_stratum, ratings[own])
            measures += found.values()
            values = [found[ALL].values[model].value for model in vectors]
            if len(found) > 1:
                stratified[name] = found
        rows.append((name, total, len(known), _share(len(known), total), *values))
    if not measures:
        raise ValueError(
            f"expected a set with at least {FEWEST} pairs of known words, got none: {', '.join(sets) or 'no set'}"
        )
    made = sum(row[4] is not None for row in rows)
    counts = {
        "pairs with a word that has no vector, or of a set with too few others": sum(map(len, sets.values())) - used,
        f"sets of fewer than {FEWEST} pairs with vectors": len(sets) - made,
        f"strata of fewer than {FEWEST_IN_STRATUM} pairs with vectors": few,
        "strata whose scores or cosines are all equal": flat,
    }
    about = f" Strata: {about_strata}." if stratified and about_strata else ""
    return Analysis(
        "similarity",
        f"Spearman's rho of the cosine of two words' vectors with human scores. Intervals and p: over pairs.{about}",
        tuple(measures),
        (
            Table("Pairs used and correlation", ("set", "pairs", "used", "share used", *vectors), tuple(rows)),
            *(_by_stratum(name, found) for name, found in stratified.items()),
        ),
        tuple(_bars(name, found) for name, found in stratified.items()),
        left_out={**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _measure(key: str, name: str, cosines: Scores, ratings: Float[np.ndarray, " pair"]) -> Measure:
    tests = paired_correlation_tests(cosines, ratings, "spearman")
    return measure(key, f"{name}: Spearman rho", len(ratings), spearman(cosines, ratings), tests)


def _by_stratum(name: str, found: Mapping[str, Measure]) -> Table:
    """Return a row for each model and a column for each stratum, below the number of pairs."""
    models = found[ALL].values
    return Table(
        f"{name} by stratum",
        ("model", *found),
        (
            ("pairs", *(one.items for one in found.values())),
            *((model, *(one.values[model].value for one in found.values())) for model in models),
        ),
    )


def _bars(name: str, found: Mapping[str, Measure]) -> Bars:
    return Bars(
        f"similarity/{slug(name)}-strata",
        f"{name} by stratum, with 95% intervals",
        "Spearman rho",
        {stratum: one.values for stratum, one in found.items()},
        {stratum: one.items for stratum, one in found.items()},
    )


def _cosines(
    rows: Float[np.ndarray, "word dim"], first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"]
) -> Float[np.ndarray, " pair"]:
    """Return the cosine of each pair of rows."""
    return np.concatenate(
        [
            np.einsum("pd,pd->p", directions(rows[first[block]]), directions(rows[second[block]]))
            for block in row_blocks(len(first), 2 * rows.shape[1])
        ]
    )


def _share(used: int, total: int) -> float:
    """Return a share with three decimals, rounded down: 1.000 is said of all alone."""
    return used * 1000 // total / 1000 if total else 0.0
