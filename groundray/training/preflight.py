"""What a run would do, found out without doing any of it: `--dry-run`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch

from groundray.config import Settings
from groundray.data.plan import Plan
from groundray.data.schema import Dataset
from groundray.model.build import build_head, build_model
from groundray.model.freezing import freeze, trainable_counts
from groundray.model.heads import Vocabulary
from groundray.model.trunk import build_trunk
from groundray.stage.protocol import Stage, vocabulary_of
from groundray.storage.folder import format_bytes
from groundray.training import checkpoint, progression
from groundray.training.trunk_features import folder_of, map_shape, refusal


@dataclass(frozen=True)
class StagePreview:
    """What a stage would do.

    Attributes:
        data: a line each for the training and validation shards, and one for trunk features where they can be used.
        trainable: trained parameters of each module.
    """

    name: str
    data: tuple[str, ...]
    trainable: dict[str, int]


@dataclass(frozen=True)
class Preview:
    """What a run would do; `problems` are why it could not start."""

    folder: str
    resumes: bool
    stages: tuple[StagePreview, ...]
    problems: tuple[str, ...]


def preview(settings: Settings) -> Preview:
    """The stages, samples, steps and trainable parameters of a run. Loads no weights and starts no cluster."""
    try:
        progression.reach(settings)
        folder = progression.folder_of(settings)
        resumes = folder.exists(checkpoint.FOLDER)
    except (OSError, ValueError) as error:
        return Preview(f"{settings.run.storage}/{settings.run.name}", False, (), (str(error),))
    problems: list[str] = []
    stages = []
    for name in settings.stages:
        stage = settings.stage(name)
        data, words = [], None
        for part, shards, shuffle in (("train", stage.train, True), ("val", stage.val, False)):
            try:
                dataset = Dataset.open(shards)
                plan = _plan(settings, dataset, stage.batch_size, shuffle)
            except (OSError, ValueError) as error:
                problems.append(f"{name}.{part}: {error}")
                continue
            words = words or vocabulary_of(dataset)
            dropped = f", {plan.dropped} samples dropped an epoch" if plan.dropped else ""
            total = f" x {stage.epochs} epochs" if shuffle else ""
            data.append(f"{part}: {plan.rows} samples, {plan.steps} steps of {plan.batch_size}{total}{dropped}")
        try:
            trainable = _trainable(settings, name, words)
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
            trainable = {}
        stages.append(StagePreview(name, tuple(data), trainable))
    try:
        told = {stage.name: _features(stage, settings) for stage in progression.check(settings)}
        stages = [replace(one, data=(*one.data, told[one.name])) for one in stages]
    except (OSError, ValueError) as error:
        if not any(str(error) in problem for problem in problems):
            problems.append(str(error))
    return Preview(str(folder), resumes, tuple(stages), tuple(problems))


def _features(stage: Stage, settings: Settings) -> str:
    """Whether a stage reads trunk features instead of images, and what they take."""
    if reason := refusal(stage, settings):
        return f"trunk features: not used, {reason}"
    with torch.device("meta"):
        shape = map_shape(build_trunk(settings.model.trunk.name), settings.model.image_size)
    images = stage.train.dataset.rows + stage.val.dataset.rows
    size = format_bytes(2 * prod(shape) * images)
    return f"trunk features: {images:,} images, {size}, in {folder_of(settings)}; made once"


def _plan(settings: Settings, dataset: Dataset, batch_size: int, shuffle: bool) -> Plan:
    return Plan(tuple(dataset.group_sizes.tolist()), batch_size, settings.chunks, shuffle=shuffle, drop_last=shuffle)


def _trainable(settings: Settings, name: str, words: Vocabulary | None) -> dict[str, int]:
    """Parameters that the stage trains, counted on a model without memory.

    Args:
        words: of the shards; where there are none, as many as the settings expect.
    """
    stage = settings.stage(name)
    counts = {kind: getattr(stage, kind, None) for kind in ("classes", "predicates")}
    expected = {kind: ("?",) * count for kind, count in counts.items() if count}
    with torch.device("meta"):
        model = build_model(settings.model, pretrained=False)
        model.heads[name] = build_head(name, settings.model, model, {**expected, **(words or {})})
    freeze(model, name, getattr(stage, "trains", None))
    return trainable_counts(model)
