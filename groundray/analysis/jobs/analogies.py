"""Analogies, and the words among which they are answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs.analogy_sets import read_analogies
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.delimited import Source
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob, job_of, read_sets
from groundray.analysis.measures import analogies as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis


def job(request: AnalysisRequest) -> AnalysisJob:
    sets, problems = read_sets(request, "analogies", "analogies/ with four words a question", read_analogies)
    questions = {name: own.questions for name, own in sets.items()}
    is_open = any(not one.candidates for own in questions.values() for one in own)
    others, source = _others(request) if is_open else ((), None)
    asked = [word for own in questions.values() for one in own for word in one.words]
    words = tuple(dict.fromkeys((*others, *asked)))

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(words)
        left_out = sum((Counter(own.left_out) for own in sets.values()), Counter())
        return measures.analogies(
            selection.vectors,
            [words[row] for row in selection.rows],
            questions,
            words if is_open else (),
            {**left_out, **selection.left_out},
        )

    own = job_of(words, run, *(one.source for one in sets.values()), source)
    return replace(own, notes=(*own.notes, *(f"analogies not read: {problem}" for problem in problems)))


def _others(request: AnalysisRequest) -> tuple[tuple[str, ...], Source | None]:
    """Return the words that are answers besides those of questions: of the vocabulary, or else of the categories."""
    if request.vocabulary:
        given = read.read_words(request.vocabulary)
        return given.words, given.source
    categories = (request.norms or Norms()).categories
    if categories is None:
        return (), None
    table = read.read_categories(categories)
    return table.word, table.source
