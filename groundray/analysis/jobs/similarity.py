"""Word pairs, and human similarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.norm_tables import Ratings, read_ratings
from groundray.analysis.inputs.pair_strata import CONCRETENESS, RATED_PAIRS, Strata, strata_of
from groundray.analysis.inputs.word_pairs import Pairs, read_pairs
from groundray.analysis.jobs.job import AnalysisJob, job_of, read_sets
from groundray.analysis.measures import similarity as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.storage.delimited_text import plain


def job(request: AnalysisRequest) -> AnalysisJob:
    sets, problems = read_sets(request, "pairs", "similarity/ with word pairs", read_pairs)
    notes = [f"word pairs not read: {problem}" for problem in problems]
    rated_by = (request.norms or Norms()).concreteness
    ratings = None
    try:
        ratings = read_ratings(rated_by) if rated_by else None
    except (OSError, ValueError) as error:
        if CONCRETENESS in request.strata:
            raise
        notes.append(f"word pairs have no strata by concreteness: {error}")
    strata = _strata(request.strata, sets, ratings)
    counts = [one.left_out for one in (*sets.values(), *strata.values())]
    words = tuple(dict.fromkeys(word for pairs in sets.values() for word in (*pairs.first, *pairs.second)))

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(words)
        return measures.similarity(
            selection.vectors,
            [words[row] for row in selection.rows],
            {
                name: list(zip(pairs.first, pairs.second, pairs.score.tolist(), strict=True))
                for name, pairs in sets.items()
            },
            {**sum(map(Counter, counts), Counter()), **selection.left_out},
            {name: len(pairs.score) + sum(pairs.left_out.values()) for name, pairs in sets.items()},
            {name: own.pairs for name, own in strata.items()},
            "; ".join(f"{name} by {', '.join(own.columns)}" for name, own in strata.items()),
        )

    rated = ratings.source if ratings and any(RATED_PAIRS in own.columns for own in strata.values()) else None
    own = job_of(words, run, *(pairs.source for pairs in sets.values()), rated)
    return replace(own, notes=tuple(notes))


def _strata(chosen: Sequence[str], sets: Mapping[str, Pairs], ratings: Ratings | None) -> dict[str, Strata]:
    """Return the strata of the sets that have any.

    Raises:
        ValueError: no set has a chosen column, or one cannot be used.
    """
    titles = dict.fromkeys(title for pairs in sets.values() for title in pairs.columns)
    known = {*map(plain, titles), *([CONCRETENESS] if ratings else [])}
    if missing := [column for column in chosen if plain(column) not in known]:
        there = ", ".join([*titles, *([CONCRETENESS] if ratings else [])]) or "none"
        repair = "" if ratings else f": {CONCRETENESS} needs a table of ratings, {CONCRETENESS}.csv in --norms DIR"
        raise ValueError(
            f"--strata: expected a column of the files of pairs ({there}), got {', '.join(missing)}{repair}"
        )
    found: dict[str, Strata] = {}
    for name, pairs in sets.items():
        try:
            found[name] = strata_of(pairs, chosen, ratings.of if ratings else None)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return {name: own for name, own in found.items() if own.pairs}
