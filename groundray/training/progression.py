"""A training run from its first stage to the exported model, on whatever `Worker` carries it.

STORAGE/NAME/config.yaml      the resolved settings; a name belongs to one configuration
STORAGE/NAME/data.json        the fingerprints of its data
STORAGE/NAME/attempts/        who has worked on it, see attempts.py
STORAGE/NAME/checkpoints/     see checkpoint.py
STORAGE/NAME/history/         every step and validation, see history.py
STORAGE/NAME/not_finite/      the samples of steps whose loss was not finite
STORAGE/NAME/stacks/          what workers that hung were doing
STORAGE/NAME/model/           the exported model, see model/export.py
STORAGE/NAME/result.json      the final metrics of each stage
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from torch import nn
from transformers import PreTrainedTokenizerFast

from groundray.config import Settings, SettingsError, StageName, differences, flatten
from groundray.data.schema import Dataset
from groundray.data.shards import verify_shards
from groundray.model import export
from groundray.model.build import build_head, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.heads import MaskedLanguageHead, Vocabulary
from groundray.model.pretrained import load_masked_language_head, load_tokenizer
from groundray.model.weights import fill
from groundray.stage.protocol import Metrics, Stage
from groundray.stage.stages import NEEDS, STAGES
from groundray.storage.folder import Folder, format_bytes
from groundray.storage.object_store import is_store, probe
from groundray.training import recovery
from groundray.training.allocator import keep_freed_memory
from groundray.training.checkpoint import Store
from groundray.training.loop import train_stage
from groundray.training.recovery import Start
from groundray.training.trunk_features import with_features
from groundray.training.worker import Worker, heed

CONFIG, DATA, RESULT, MODEL = "config.yaml", "data.json", "result.json", "model"


def folder_of(settings: Settings) -> Folder:
    """Where a run is kept."""
    return Folder.at(settings.run.storage) / settings.run.name


def reach(settings: Settings) -> None:
    """See whether all stores answer that a run needs, within seconds.

    Raises:
        OSError, ValueError: one does not; the message names the setting and the repair.
    """
    unused = {name for name in get_args(StageName) if name not in settings.stages}
    for name, value in flatten(settings.model_dump(exclude=unused)):
        if isinstance(value, str) and is_store(value):
            try:
                probe(value)
            except OSError as error:
                raise OSError(f"{name}: {error}") from None
            except ValueError as error:
                raise SettingsError(f"{name}: {error}") from None


def claim(settings: Settings, stages: Sequence[Stage]) -> Folder:
    """The run's folder, with its settings and the fingerprints of its data written there, or found there and the same.

    Raises:
        OSError: the storage cannot be written.
        SettingsError: the name holds a run of another configuration or other data; the message prints the difference.
    """
    folder = folder_of(settings)
    data = {part: dataset.fingerprint for part, dataset in data_of(stages).items()}
    if not folder.exists(CONFIG):
        folder.make().write_json(DATA, data)
        folder.write_bytes(CONFIG, settings.to_yaml().encode())
        return folder
    there = Settings(**yaml.safe_load(folder.read_bytes(CONFIG))).identity() | _data(folder.read_json(DATA))
    here = settings.identity() | _data(data)
    if different := differences(there, here):
        raise SettingsError(
            f"{folder} holds a run of another configuration:\n"
            + "\n".join(different)
            + "\nuse these settings to resume it, or another --run.name"
        )
    return folder


def _data(fingerprints: dict[str, str]) -> dict[str, str]:
    return {f"{part} (the shards' fingerprint)": value for part, value in fingerprints.items()}


def check(settings: Settings) -> list[Stage]:
    """The stages of the run, their shards opened and what they start from looked at, before any worker is asked for.

    Raises:
        FileNotFoundError, ValueError: shards, tokenizer or weights that cannot be used; the message names the repair.
    """
    tokenizer = load_tokenizer(settings.model.language)
    before = export.about(settings.run.start_from) if settings.run.start_from else None
    begun = set(before.stage(settings.run.start_stage).heads) if before else set()
    for place, name in enumerate(settings.stages):
        for needed in NEEDS.get(name, ()):
            if needed not in begun and needed not in settings.stages[:place]:
                raise ValueError(
                    f"stage {name} works with the head of stage {needed}, which has not been trained: put {needed} "
                    f"before it (stages), or begin with a model that has it (run.start_from)"
                )
    stages = [STAGES[name](settings, tokenizer) for name in settings.stages]
    for stage in stages:
        if before and stage.name in begun and not stage.settings.new_head:
            _same_words(stage, before.vocabulary[stage.name], str(settings.run.start_from))
    return stages


def verify(stages: Sequence[Stage], tell: Callable[[str], None]) -> None:
    """Read all shards of some stages, and compare every byte with what was written.

    Raises:
        ValueError: a shard is damaged; the message names it, its damaged row group and the repair.
    """
    seen: set[str] = set()
    for part, dataset in data_of(stages).items():
        if dataset.fingerprint not in seen:
            verify_shards(dataset)
            tell(
                f"{part}  {len(dataset.shards)} shards are whole "
                f"({format_bytes(sum(one.bytes for one in dataset.shards))})"
            )
        seen.add(dataset.fingerprint)


def data_of(stages: Sequence[Stage]) -> dict[str, Dataset]:
    """The data sets of some stages, by `stage.train` and `stage.val`."""
    return {
        f"{stage.name}.{part}": source.dataset
        for stage in stages
        for part, source in (("train", stage.train), ("val", stage.val))
    }


def train(settings: Settings, worker: Worker) -> dict[str, Any]:
    """The result of a run: the metrics of each stage's best epoch. Goes on with whatever the run's folder holds.

    Raises:
        Stopped: the worker had notice; the same call goes on.
    """
    keep_freed_memory()
    folder = folder_of(settings)
    stages = check(settings)
    store, start = recovery.begin(folder, [stage.name for stage in stages], worker)
    tokenizer = load_tokenizer(settings.model.language)
    model, heads = begin(settings)
    model.to(worker.device)

    results: dict[str, Metrics] = {}
    for stage in stages:
        enter(stage, model, heads, settings)
        results[stage.name] = run_stage(stage, model, worker, store, start, settings)

    exported = folder.exists(RESULT) and (folder / MODEL).exists(export.ABOUT)
    if worker.rank == 0 and (start.stage or not exported):
        heed(worker)
        _export(settings, stages, results, store, tokenizer, folder, worker)
        folder.write_json(RESULT, {"run": settings.run.name, "stages": results})
    if worker.rank == 0:
        store.attempt.beat(stages[-1].name, 0, ended="finished")
    return {"run": settings.run.name, "stages": results}


def begin(settings: Settings) -> tuple[GroundedModel, dict[str, nn.Module]]:
    """The streams as the first stage finds them, and the heads that come with them; the same at every call.

    Raises:
        ValueError: `run.start_from` is not a model of these settings; the message names what differs.
    """
    torch.manual_seed(settings.run.seed)
    if settings.run.start_from is None:
        return build_model(settings.model), {}
    exported = export.load(settings.run.start_from, settings.run.start_stage)
    model = build_model(settings.model, pretrained=False)
    for part, there in ((model.visual, exported.model.visual), (model.language, exported.model.language)):
        fill(part, there.float().state_dict(), f"run.start_from: {settings.run.start_from}")
    return model, {name: head.float() for name, head in exported.model.heads.items()}


def enter(stage: Stage, model: GroundedModel, heads: dict[str, nn.Module], settings: Settings) -> None:
    """Give a model the heads of a stage: those that it needs and its own, in the stage's precision.

    Args:
        heads: what has been trained so far, by name; the stage's own joins them.
    """
    if stage.name not in heads or stage.settings.new_head:
        head = build_head(stage.name, settings.model, model, stage.vocabulary, settings.run.seed)
        begins = isinstance(head, MaskedLanguageHead) and settings.run.start_from is None
        if begins and (published := load_masked_language_head(settings.model.language)):
            fill(head, published, "the published masked language head")
        heads[stage.name] = head
    model.heads = nn.ModuleDict({name: heads[name] for name in (*NEEDS.get(stage.name, ()), stage.name)})
    parameter = next(model.parameters())
    model.to(parameter.device, torch.float64 if stage.settings.precision == "float64" else torch.float32)


def run_stage(
    stage: Stage, model: GroundedModel, worker: Worker, store: Store, start: Start, settings: Settings
) -> Metrics:
    """The metrics that a stage ends with, its best weights in the model; a finished stage is not run again."""
    if done := store.finished(stage.name):
        store.load(store.named(done.best), model)
        return done.metrics
    return train_stage(
        with_features(stage, settings, model.visual.trunk, worker), model, worker, store, start, settings
    )


def _same_words(stage: Stage, before: Vocabulary, origin: str) -> None:
    """Raise ValueError where a stage's data number other words than the head that it would go on with."""
    for kind, words in before.items():
        here = stage.vocabulary.get(kind, ())
        if here != words:
            lost = ", ".join(sorted(set(words) - set(here))[:5])
            raise ValueError(
                f"{stage.name}.train: its shards have {len(here)} {kind}, the model at {origin} was trained with "
                f"{len(words)}{f' (here without {lost})' if lost else ''}: prepare them with the same "
                f"words, or set {stage.name}.new_head to begin with a fresh head"
            )


def _export(
    settings: Settings,
    stages: Sequence[Stage],
    results: dict[str, Metrics],
    store: Store,
    tokenizer: PreTrainedTokenizerFast,
    folder: Folder,
    worker: Worker,
) -> None:
    """Write the model of every stage to the run's folder."""
    model, heads = begin(settings)
    with tempfile.TemporaryDirectory() as local:
        writer = export.Writer(Path(local), settings, tokenizer, model, heads)
        for stage in stages:
            done = store.finished(stage.name)
            if done is None:
                raise RuntimeError(f"stage {stage.name} is not finished in {store.folder}")
            worker.alive()
            weights = store.weights(store.named(done.best))
            writer.add(stage.name, weights, results[stage.name], stage.vocabulary)
        writer.close({part: f"{found.folder} ({_counted(found)})" for part, found in data_of(stages).items()})
        store.attempt.hold()  # whoever has taken over may have exported it
        for name in (RESULT, MODEL):
            folder.delete(name)
        written = Folder.at(local)
        written.copy([name for name in written.files() if name != export.ABOUT], folder / MODEL)
        written.copy([export.ABOUT], folder / MODEL)  # last: without it, it is no model


def _counted(dataset: Dataset) -> str:
    counts = ", ".join(f"{count} {name}" for name, count in dataset.counts.items() if name != "rows")
    return f"{counts}; fingerprint {dataset.fingerprint[:12]}"
