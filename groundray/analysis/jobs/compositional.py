"""Compositional sets, by a whole model and by other models of images and texts."""

from __future__ import annotations

from groundray.analysis.exported import Missing
from groundray.analysis.inputs.compositional_scores import score_set
from groundray.analysis.inputs.compositional_sets import READERS, read_sets
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob
from groundray.analysis.measures.compositional import compositional
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.analysis.systems import systems


def job(request: AnalysisRequest) -> AnalysisJob:
    if not request.sets:
        raise Missing(f"it needs a compositional set: give --set NAME=FOLDER with a name of {', '.join(READERS)}")
    contenders = systems(request.checkpoint, request.models, request.encoders)
    sets = read_sets(request.sets, request.set_images)

    def run(_: Lexicon) -> Analysis:
        scores, how = {}, {}
        for system in contenders.values():
            encoder = system.load()
            scores[system.label] = {one.name: score_set(encoder, one, request.batch_size) for one in sets}
            how[system.label] = encoder.how
        return compositional(sets, scores, how)

    return AnalysisJob((), run, notes=tuple(note for one in sets for note in one.notes))
