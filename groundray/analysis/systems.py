"""Analyses of dual encoders on shards: the stages of an exported model, beside other models of images and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.exported import Missing, choose_shards, language_streams, trained_stages
from groundray.analysis.inputs.caption_pool import CAPTIONS, CaptionedImages, Pool
from groundray.analysis.inputs.catalog import Models
from groundray.analysis.inputs.class_texts import ClassTexts
from groundray.analysis.inputs.dual_encoder import STAGES, DualEncoder, DualEncoders
from groundray.analysis.measures.image_text_retrieval import Protocol, Retrieval, retrieval
from groundray.data.image_rows import read_image_rows
from groundray.data.schema import Dataset
from groundray.model import export
from groundray.model.pretrained import is_nowhere
from groundray.model.two_towers import TYPES, is_two_towers


@dataclass(frozen=True)
class System:
    """A dual encoder to measure: a stage of the exported model, or another model.

    Attributes:
        label: its name in tables.
        load: returns it, loaded once.
    """

    label: str
    load: Callable[[], DualEncoder]


def systems(checkpoint: str | None, models: Sequence[str], encoders: DualEncoders) -> dict[str, System]:
    """Return the stages `grounding` and `retrieval` of an exported model, by their names, and those of the other models
    that are dual encoders. A stage is labelled by its language stream, unless both have the same.

    Args:
        models: other models, as NAME=FOLDER.

    Raises:
        FileNotFoundError, ValueError: the checkpoint is not an exported model, or a name is taken.
        Missing: the checkpoint was trained in neither stage, or there is no system at all.
    """
    found: dict[str, System] = {}
    if checkpoint:
        about = export.about(checkpoint)
        stages, streams = trained_stages(about, *STAGES), language_streams(about)
        distinct = len({streams[name] for name in stages}) == len(stages)
        for name in stages:
            found[name] = System(streams[name] if distinct else name, partial(encoders.stage, checkpoint, name))
    for name, place in (Models.of(None, models).sources if models else {}).items():
        if not is_two_towers(place):
            continue
        if name in found or name in [system.label for system in found.values()]:
            raise ValueError(f"--model: {name} is a stage of the checkpoint already: give {place} another name")
        found[name] = System(name, partial(encoders.model, name, place))
    if not found:
        raise Missing("it needs a model of images and texts: give --checkpoint DIR, or --model clip=FOLDER")
    return found


def refuse_others(models: Sequence[str]) -> None:
    """Raise ValueError if one of the models, given as NAME=FOLDER, is not a dual encoder."""
    for name, place in (Models.of(None, models).sources if models else {}).items():
        if not is_two_towers(place):
            raise ValueError(
                f"--model {name}: expected a model of images and texts with a vector each ({', '.join(TYPES)}) at "
                f"{place}, found {'nothing there' if is_nowhere(place) else 'another model or none'}"
            )


def measure_retrieval(
    checkpoint: str | None,
    images: str | None,
    batch_size: int,
    models: Sequence[str] = (),
    protocol: Protocol = "published",
    encoders: DualEncoders | None = None,
) -> dict[str, Retrieval]:
    """Measure retrieval with each of the stages `grounding` and `retrieval` that the model was trained in, and with
    other models of images and texts.

    Args:
        images: shards of captioned images; None for the stage's own validation shards, and for other models those of
            the first stage.
        models: other models, as NAME=FOLDER.

    Raises:
        ValueError: there is nothing to measure, or no shards to measure it on.
    """
    found = systems(checkpoint, models, encoders or DualEncoders())
    shards = retrieval_shards(checkpoint, images, list(found))
    results = {}
    for name, system in found.items():
        encoder, dataset = system.load(), Dataset.open(shards[name], "captions")
        rows = read_image_rows(dataset, encoder.image_inputs, ("captions",), batch_size)
        batches = (CaptionedImages(batch["image"], batch["captions"].tolist()) for batch in rows)
        pool = Pool(encoder, batches, CAPTIONS if protocol == "published" else 1)
        results[name] = retrieval(pool, protocol, shards[name])
    return results


def retrieval_shards(checkpoint: str | None, images: str | None, names: Sequence[str]) -> dict[str, str]:
    """Return the shards of captioned images that each system is measured on.

    Raises:
        Missing: none are given, and there are no validation shards of a stage.
    """
    if checkpoint is None:
        if images is None:
            raise Missing("it needs captioned images: give --data SHARDS, or a checkpoint with its validation shards")
        return dict.fromkeys(names, images)
    about = export.about(checkpoint)
    own = {name: choose_shards(about.settings[name]["val"], images) for name in trained_stages(about, *STAGES)}
    return {name: own.get(name) or next(iter(own.values())) for name in names}


def system_labels(checkpoint: str | None, models: Sequence[str]) -> dict[str, str]:
    """Return the label of each system by its name, as `systems`. No weights are read."""
    return {name: system.label for name, system in systems(checkpoint, models, DualEncoders()).items()}


class ClassScores(NamedTuple):
    """Labelled images as a system sees them.

    Attributes:
        scores: similarity of each image and the text of each class.
        truth: class of each image.
        unknown: number of classes whose name has no word pieces, or an unknown one.
    """

    scores: Float[np.ndarray, "image class"]
    truth: Int[np.ndarray, " image"]
    unknown: int


def score_classes(encoder: DualEncoder, dataset: Dataset, templates: Sequence[str], batch_size: int) -> ClassScores:
    """Return the scores of a data set's images and classes. No embedding of an image is kept."""
    texts = ClassTexts(encoder, dataset.vocabulary["classes"], templates)
    scores, truth = [], []
    for rows in read_image_rows(dataset, encoder.image_inputs, ("label",), batch_size):
        scores.append(texts.scores(encoder.images(rows["image"])))
        truth.append(rows["label"].astype(np.int64))
    return ClassScores(np.concatenate(scores), np.concatenate(truth), texts.unknown)
