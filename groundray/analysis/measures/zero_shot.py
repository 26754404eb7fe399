"""Zero-shot classification: the class whose text is most similar to an image (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from groundray.analysis.measures.proportion import mean_over_classes, shares
from groundray.analysis.measures.statistics import measure
from groundray.analysis.result import Analysis, Measure, Table
from groundray.stage.metrics import ranks

TOP = (1, 5)


def zero_shot(
    scores: Mapping[str, Float[np.ndarray, "image class"]],
    truth: Int[np.ndarray, " image"],
    classes: Sequence[str],
    how: Mapping[str, str],
    templates: Sequence[str],
    left_out: Mapping[str, int] | None = None,
) -> Analysis:
    """Return top-1 and top-5 accuracy, over images and as a mean over classes. Ties count against the model.

    Args:
        scores: of each model, of the same images.
        truth: class of each image.
        how: what each model compares images and texts by.
        templates: the sentences that name a class.

    Raises:
        ValueError: there are no images.
    """
    if len(truth) == 0:
        raise ValueError("expected at least one image, got none")
    found = {
        model: ranks(torch.from_numpy(table), torch.from_numpy(truth.astype(np.int64))).numpy()
        for model, table in scores.items()
    }
    counts = np.bincount(truth, minlength=len(classes))
    present = int((counts > 0).sum())
    measures, chance = [], {}
    for k in [k for k in TOP if k == 1 or k < len(classes)]:
        hits = {model: (rank <= k).astype(np.float64) for model, rank in found.items()}
        by_class = {model: mean_over_classes(one, truth) for model, one in hits.items()}
        measures += [
            shares(f"top{k}", f"top-{k} accuracy", hits),
            measure(f"class_mean/top{k}", f"top-{k} accuracy, mean over classes", present, by_class),
        ]
        chance[k] = k / len(classes)
    notes = {"classes without an image": len(classes) - present, **(left_out or {})}
    sentences = ", ".join(repr(template) for template in templates)
    return Analysis(
        "zero_shot",
        "The class whose text is most similar to an image. A class's text is its name in template sentences "
        f"({sentences}): of vectors the mean, scaled to length 1; of a match map the mean score (Radford et al. 2021). "
        "Accuracies over images have Wilson's intervals (1927); means over classes and differences are resampled over "
        "images.",
        tuple(measures),
        (_overview(measures, chance, counts, how), _by_class(found, truth, classes)),
        left_out={name: count for name, count in notes.items() if count},
    )


def _overview(
    measures: Sequence[Measure], chance: Mapping[int, float], counts: Int[np.ndarray, " class"], how: Mapping[str, str]
) -> Table:
    rows = [(model, compared, *(one.values[model].value for one in measures)) for model, compared in how.items()]
    rows += [
        ("chance", "", *(level for level in chance.values() for _ in range(2))),
        ("most frequent class", "", float(counts.max() / counts.sum()), *[None] * (len(measures) - 1)),
    ]
    title = f"Zero-shot classification of {counts.sum():,} images in {len(counts):,} classes"
    return Table(title, ("", "compared by", *(one.name for one in measures)), tuple(rows))


def _by_class(
    found: Mapping[str, Int[np.ndarray, " image"]], truth: Int[np.ndarray, " image"], classes: Sequence[str]
) -> Table:
    def share(right: Bool[np.ndarray, " image"]) -> float | None:
        return float(right.mean()) if len(right) else None

    rows = tuple(
        (name, int((truth == number).sum()), *(share(rank[truth == number] <= 1) for rank in found.values()))
        for number, name in enumerate(classes)
    )
    return Table("Top-1 accuracy of each class", ("class", "images", *found), rows)
