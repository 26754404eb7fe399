"""What analyses of an exported model need: its stages, its settings, its data; and relations in scene graphs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from groundray.analysis.measures import relations
from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.schema import INDEX, Dataset
from groundray.data.stream import Source, stream
from groundray.model import export
from groundray.model.export import About
from groundray.stage.protocol import vocabulary_of
from groundray.stage.relational import scene_graphs
from groundray.storage.folder import Folder


class Missing(ValueError):
    """Data that an analysis needs is missing. Other analyses are not affected."""


def measure_relations(checkpoint: str, graphs: str | None, batch_size: int) -> relations.Relations:
    """Measure which predicates and objects the model finds in scene graphs.

    Args:
        graphs: shards of scene graphs; None for the relational stage's own validation shards.

    Raises:
        ValueError: the model was not trained in the relational stage.
    """
    about = export.about(checkpoint)
    trained_stages(about, "relational")
    exported = export.load(checkpoint, "relational")
    settings = reading_settings(about, "relational", batch_size)
    stage = settings.stage("relational")
    dataset = Dataset.open(choose_shards(stage.val, graphs), "scene_graphs")
    return relations.relations(
        exported.model,
        batches_of(scene_graphs(settings, stage, exported.tokenizer, dataset, shuffle=False)),
        stage.special_tokens,
        taught=about.vocabulary["relational"],
        used=vocabulary_of(dataset),
    )


def trained_stages(about: About, *names: str) -> list[str]:
    """Return those of the named stages that a model was trained in.

    Raises:
        Missing: it was trained in none of them.
    """
    stages = [stage.name for stage in about.stages]
    if not set(names) & set(stages):
        lacking = f"{'neither' if len(names) > 1 else 'no'} stage {' nor '.join(names)}"
        raise Missing(f"the model has {lacking}: it was trained in {', '.join(stages)}")
    return [name for name in stages if name in names]


def language_streams(about: About) -> dict[str, str]:
    """Return the name of each stage's language stream, such as `grounded`."""
    return {stage.name: stage.language.removeprefix(f"{export.LANGUAGE}-") for stage in about.stages}


def choose_shards(own: str, given: str | None) -> str:
    """Return the given shards, or else the run's own.

    Raises:
        Missing: none are given, and the run's own do not exist.
    """
    if given is None and not Folder.at(own).exists(INDEX):
        raise Missing(f"the shards that the run was validated on are not at {own}")
    return given or own


def reading_settings(about: About, stage: str, batch_size: int) -> Settings:
    """Return the settings that a model was trained with, changed to read batches of this size in one chunk.

    Raises:
        ValueError: the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {batch_size}")
    tree = copy.deepcopy(about.settings)
    tree["scaling"] |= {"num_workers": 0, "chunks": 1}
    tree[stage]["batch_size"] = batch_size
    return Settings.stored(tree)


def batches_of(source: Source) -> Iterator[Any]:
    """Yield the batches of one epoch."""
    return (batch for step in stream(source, Cursor(), epochs=1) for _, batch in step.chunks)
