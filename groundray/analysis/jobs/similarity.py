"""Word pairs, and human similarity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.word_pairs import Pairs, read_pairs
from groundray.analysis.jobs.job import AnalysisJob, job_of, path_of
from groundray.analysis.measures import similarity as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis


def job(request: AnalysisRequest) -> AnalysisJob:
    path_of(request, "pairs", "similarity/ with word pairs")
    norms = request.norms or Norms()
    sets: dict[str, Pairs] = {}
    problems: list[str] = []
    for name, file in (norms.pairs or {}).items():
        try:
            sets[name] = read_pairs(file)
        except (OSError, ValueError) as error:
            if not norms.pairs_found:
                raise
            problems.append(str(error))
    if not sets:
        raise ValueError(problems[0])
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
            {**_unread(sets), **selection.left_out},
            {name: len(pairs.score) + sum(pairs.left_out.values()) for name, pairs in sets.items()},
        )

    own = job_of(words, run, *(pairs.source for pairs in sets.values()))
    return replace(own, notes=tuple(f"word pairs not read: {problem}" for problem in problems))


def _unread(sets: Mapping[str, Pairs]) -> dict[str, int]:
    """Return the counts of pairs that were left out when the sets were read."""
    return dict(sum((Counter(pairs.left_out) for pairs in sets.values()), Counter()))
