"""Analyses as jobs: where the data of each is, which texts it needs vectors of, and what it computes."""

from __future__ import annotations

from collections.abc import Callable

from groundray.analysis.jobs import (
    analogies,
    axes,
    categories,
    composition,
    compositional,
    norms,
    ratings,
    relations,
    retrieval,
    similarity,
    zero_shot,
)
from groundray.analysis.jobs.job import AnalysisJob
from groundray.analysis.request import AnalysisRequest

THROUGH_IMAGES = "composition_through_images"
ANALYSES: dict[str, Callable[[AnalysisRequest], AnalysisJob]] = {
    "axes": axes.job,
    "norms": norms.job,
    "categories": categories.job,
    "composition": composition.job,
    THROUGH_IMAGES: composition.through_images,
    "similarity": similarity.job,
    "ratings": ratings.job,
    "analogies": analogies.job,
    "retrieval": retrieval.job,
    "relations": relations.job,
    "zero_shot": zero_shot.job,
    "compositional": compositional.job,
}
# analyses that `all` makes where their data is given: what the request has then
ON_REQUEST: dict[str, Callable[[AnalysisRequest], object]] = {
    "zero_shot": lambda request: request.labelled,
    "compositional": lambda request: request.sets,
}


def made_by_all(request: AnalysisRequest) -> tuple[str, ...]:
    """Return the names of the analyses that `all` makes of a request, in their order."""
    return tuple(name for name in ANALYSES if name not in ON_REQUEST or ON_REQUEST[name](request))
