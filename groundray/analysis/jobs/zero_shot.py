"""Zero-shot classification of labelled images, by a whole model and by other models of images and texts."""

from __future__ import annotations

from groundray.analysis.exported import Missing, choose_shards
from groundray.analysis.inputs.class_texts import TEMPLATES
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import AnalysisJob
from groundray.analysis.measures.zero_shot import zero_shot
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.analysis.systems import score_classes, systems
from groundray.data.schema import Dataset
from groundray.model import export


def job(request: AnalysisRequest) -> AnalysisJob:
    contenders = systems(request.checkpoint, request.models, request.encoders)
    dataset = Dataset.open(_shards(request), "labelled_images")
    templates = request.embedding.templates or TEMPLATES

    def run(_: Lexicon) -> Analysis:
        found, how = {}, {}
        for system in contenders.values():
            encoder = system.load()
            found[system.label] = score_classes(encoder, dataset, templates, request.batch_size)
            how[system.label] = encoder.how
        truth = next(iter(found.values())).truth
        unknown = {f"classes whose name {label} does not know": one.unknown for label, one in found.items()}
        scores = {label: one.scores for label, one in found.items()}
        return zero_shot(scores, truth, dataset.vocabulary["classes"], how, templates, unknown)

    return AnalysisJob((), run)


def _shards(request: AnalysisRequest) -> str:
    """Return the given shards of labelled images, or those that the run's stage `visual` was validated on."""
    if request.labelled:
        return request.labelled
    about = export.about(request.checkpoint) if request.checkpoint else None
    if about is None or "visual" not in [stage.name for stage in about.stages]:
        raise Missing("it needs labelled images: give --data SHARDS, as `prepare image-folder` writes them")
    shards = choose_shards(about.settings["visual"]["val"], None)
    if (kind := Dataset.open(shards).kind) != "labelled_images":
        raise Missing(
            f"it needs images of one class each, and the stage visual was validated on {kind} ({shards}): give "
            "--data SHARDS, as `prepare image-folder` writes them"
        )
    return shards
