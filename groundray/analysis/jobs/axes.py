"""Principal axes of the categories' words, and concreteness."""

from __future__ import annotations

import numpy as np

from groundray.analysis.exported import Missing
from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.category_contrasts import read_contrasts
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob, job_of, rated_rows
from groundray.analysis.measures import axes as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis


def job(request: AnalysisRequest) -> AnalysisJob:
    rows, sources = rated_rows(request)
    if not np.isfinite(rows.concreteness).any():
        raise Missing(
            f"no concreteness of the categories' words {(request.norms or Norms()).looked_for}: "
            "give --concreteness FILE"
        )
    choice: measures.FitOn = request.fit_on if request.fit_on in measures.FITS else measures.DEFAULT_FIT
    fit_on = read.read_words(request.fit_on) if request.fit_on and request.fit_on not in measures.FITS else None
    contrasts = read_contrasts(request.contrasts, rows.category)

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(rows.word)
        other = lexicon.select(fit_on.words) if fit_on else None
        return measures.axes(
            selection.vectors,
            [rows.word[row] for row in selection.rows],
            [rows.category[row] for row in selection.rows],
            rows.concreteness[selection.rows],
            request.components,
            other.vectors if other else choice,
            f"of {request.fit_on}",
            rows.left_out | selection.left_out,
            contrasts.every,
        )

    texts = (*rows.word, *(fit_on.words if fit_on else ()))
    return job_of(texts, run, *sources, fit_on.source if fit_on else None, contrasts.source)
