"""A training run from its first stage to the exported model, on whatever `Worker` carries it.

STORAGE/NAME/config.yaml      the resolved settings; a name belongs to one configuration
STORAGE/NAME/checkpoints/     see checkpoint.py
STORAGE/NAME/model/           the exported model
STORAGE/NAME/result.json      the final metrics of each stage
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from groundray.config import Settings, SettingsError
from groundray.data.stream import Source
from groundray.model import export
from groundray.model.grounded import build
from groundray.model.language import load_tokenizer
from groundray.stage.stages import STAGES
from groundray.storage import Folder
from groundray.training.checkpoint import Store
from groundray.training.loop import train_stage
from groundray.training.memory import keep_freed_memory
from groundray.training.worker import Worker

CONFIG, RESULT, MODEL, CHECKPOINTS = "config.yaml", "result.json", "model", "checkpoints"


def folder_of(settings: Settings) -> Folder:
    """Where a run is kept."""
    return Folder.at(settings.run.storage) / settings.run.name


def claim(settings: Settings) -> Folder:
    """The run's folder, with its settings written there, or found there and the same.

    Raises:
        SettingsError: the name holds a run of another configuration; the message prints the difference.
    """
    folder = folder_of(settings)
    if not folder.exists(CONFIG):
        folder.make().write_bytes(CONFIG, settings.to_yaml().encode())
        return folder
    there = Settings(**yaml.safe_load(folder.read_bytes(CONFIG))).identity()
    here = settings.identity()
    changed = [
        f"  {key}: {there.get(key)!r} there, {here.get(key)!r} now"
        for key in here | there
        if there.get(key) != here.get(key)
    ]
    if changed:
        raise SettingsError(
            f"{folder} holds a run of another configuration:\n"
            + "\n".join(changed)
            + "\nuse these settings to resume it, or another --run.name"
        )
    return folder


def check(settings: Settings) -> dict[str, Source]:
    """Every data set that the run will read, by `stage.train` and `stage.val`, opened before any worker is asked for.

    Raises:
        FileNotFoundError, ValueError: shards, tokenizer or weights that cannot be used; the message names the repair.
    """
    tokenizer = load_tokenizer(settings.model.language)
    stages = [STAGES[name](settings, tokenizer) for name in settings.stages]
    return {
        f"{stage.name}.{part}": source
        for stage in stages
        for part, source in (("train", stage.train), ("val", stage.val))
    }


def train(settings: Settings, worker: Worker) -> dict[str, Any]:
    """The result of a run: the metrics of each stage's best epoch. Resumes whatever the run's folder holds."""
    keep_freed_memory()
    folder = folder_of(settings)
    store = Store(folder / CHECKPOINTS)
    tokenizer = load_tokenizer(settings.model.language)
    torch.manual_seed(settings.run.seed)
    model = build(settings.model).to(worker.device)

    result: dict[str, Any] = {"run": settings.run.name, "stages": {}}
    for name in settings.stages:
        stage = STAGES[name](settings, tokenizer)
        model.to(torch.float64 if stage.settings.precision == "float64" else torch.float32)
        result["stages"][name] = train_stage(stage, model, worker, store, settings.run.seed)

    if worker.rank == 0:
        details = {"settings": settings.model_dump(mode="json"), "metrics": result["stages"]}
        with tempfile.TemporaryDirectory() as local:
            export.save(model, tokenizer, Path(local), details)
            folder.delete(MODEL)
            folder.upload(Path(local), MODEL)
        folder.write_json(RESULT, result)
    return result
