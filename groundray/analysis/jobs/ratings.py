"""Words rated on several dimensions, and what their vectors predict of the ratings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.rating_tables import plain_name, read_groups, read_rated_words
from groundray.analysis.jobs.job import AnalysisJob, job_of, path_of, read_sets
from groundray.analysis.measures import ratings as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis

FILES = "ratings/ with words and numbers"


def job(request: AnalysisRequest) -> AnalysisJob:
    path_of(request, "ratings", FILES)
    groups_file = (request.norms or Norms()).rating_groups
    groups = read_groups(groups_file) if groups_file else None
    sets, problems = read_sets(request, "ratings", FILES, partial(read_rated_words, groups=groups))
    notes = [f"ratings not read: {problem}" for problem in problems]
    rated_on = {plain_name(name) for rated in sets.values() for name in rated.dimensions}
    if groups and not groups.keys() & rated_on:
        notes.append(f"{groups_file}: not used, it names none of the dimensions: {next(iter(groups))} is none")
    words = tuple(dict.fromkeys(word for rated in sets.values() for word in rated.words))

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(words)
        left_out = sum((Counter(rated.left_out) for rated in sets.values()), Counter())
        return measures.ratings(
            selection.vectors,
            [words[row] for row in selection.rows],
            sets,
            left_out={**left_out, **selection.left_out},
        )

    own = job_of(words, run, *(rated.source for rated in sets.values()))
    return replace(own, notes=(*own.notes, *notes))
