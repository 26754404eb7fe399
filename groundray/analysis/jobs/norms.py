"""Features of concepts, read from word vectors."""

from __future__ import annotations

from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob, job_of, path_of
from groundray.analysis.measures import feature_norms
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis


def job(request: AnalysisRequest) -> AnalysisJob:
    table = read.read_features(path_of(request, "features", "features.csv"), request.min_people)

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(table.concepts)
        return feature_norms.feature_norms(
            selection.vectors,
            [table.concepts[row] for row in selection.rows],
            table.features,
            table.has[selection.rows],
            table.types,
            request.classifiers,
            left_out=table.left_out | selection.left_out,
        )

    return job_of(table.concepts, run, table.source)
