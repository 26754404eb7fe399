"""Recall between images and captions, of a whole model."""

from __future__ import annotations

from groundray.analysis.exported import choose_shards, language_streams, measure_retrieval, trained_stages
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob, checkpoint_of
from groundray.analysis.measures import image_text_retrieval
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.model import export


def job(request: AnalysisRequest) -> AnalysisJob:
    checkpoint = checkpoint_of(request)
    about = export.about(checkpoint)
    for name in trained_stages(about, "grounding", "retrieval"):
        choose_shards(about.settings[name]["val"], request.images)

    def run(_: Lexicon) -> Analysis:
        return image_text_retrieval.analysis(
            measure_retrieval(checkpoint, request.images, request.batch_size), language_streams(about)
        )

    return AnalysisJob((), run)
