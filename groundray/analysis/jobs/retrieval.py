"""Recall between images and captions, of a whole model and of other models of images and texts."""

from __future__ import annotations

from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob
from groundray.analysis.measures import image_text_retrieval
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.analysis.systems import measure_retrieval, retrieval_shards, system_labels


def job(request: AnalysisRequest) -> AnalysisJob:
    labels = system_labels(request.checkpoint, request.models)
    retrieval_shards(request.checkpoint, request.images, list(labels))

    def run(_: Lexicon) -> Analysis:
        found = measure_retrieval(
            request.checkpoint, request.images, request.batch_size, request.models, encoders=request.encoders
        )
        return image_text_retrieval.analysis(found, labels)

    return AnalysisJob((), run)
