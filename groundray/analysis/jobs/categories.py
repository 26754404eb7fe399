"""Cohesion of categories of words."""

from __future__ import annotations

from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import CATEGORY_FILES, AnalysisJob, job_of, path_of
from groundray.analysis.measures import categories as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis


def job(request: AnalysisRequest) -> AnalysisJob:
    rows = read.read_categories(path_of(request, "categories", CATEGORY_FILES))

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(rows.word)
        return measures.categories(
            selection.vectors,
            [rows.word[row] for row in selection.rows],
            [rows.category[row] for row in selection.rows],
            rows.left_out | selection.left_out,
        )

    return job_of(rows.word, run, rows.source)
