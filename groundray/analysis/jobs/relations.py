"""Accuracy of predicates and objects, of a whole model."""

from __future__ import annotations

from groundray.analysis.exported import choose_shards, language_streams, measure_relations, trained_stages
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob, checkpoint_of
from groundray.analysis.measures import relations as measures
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.model import export


def job(request: AnalysisRequest) -> AnalysisJob:
    checkpoint = checkpoint_of(request)
    about = export.about(checkpoint)
    trained_stages(about, "relational")
    choose_shards(about.settings["relational"]["val"], request.graphs)

    def run(_: Lexicon) -> Analysis:
        return measures.analysis(
            measure_relations(checkpoint, request.graphs, request.batch_size), language_streams(about)["relational"]
        )

    return AnalysisJob((), run)
