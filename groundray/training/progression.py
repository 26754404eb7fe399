"""A training run from its first stage to the exported model, on any `Worker`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from groundray import arithmetic
from groundray.config import Settings
from groundray.data.schema import LEFT_OUT, Dataset
from groundray.model import export, programs
from groundray.model.build import build_head, build_model, learn_logits
from groundray.model.grounded import GroundedModel
from groundray.model.heads import MaskedLanguageHead
from groundray.model.pretrained import load_masked_language_head
from groundray.model.weights import fill
from groundray.special_tokens import SpecialTokens
from groundray.stage.protocol import Metrics, Stage
from groundray.stage.stages import NEEDS
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.training import recovery
from groundray.training.allocator import keep_freed_memory
from groundray.training.checkpoint import CheckpointStore
from groundray.training.compilation import compile_parts
from groundray.training.events import Notice
from groundray.training.gradient_checkpointing import checkpoint_gradients
from groundray.training.jpeg_decoding import with_encoded_crops
from groundray.training.keys import with_keys
from groundray.training.layout import MODEL, RESULT, read_result
from groundray.training.loop import train_stage
from groundray.training.preflight import CheckedRun
from groundray.training.trunk_features import with_features
from groundray.training.worker import Worker, raise_if_stop_requested


def run_stages(run: CheckedRun, worker: Worker) -> dict[str, Any]:
    """Train the stages of a run in order and export the model; resumes from what the run's folder holds.

    Returns:
        The run's name, and for each stage the metrics of its best weights and how those were chosen.

    Raises:
        Stopped: the worker was asked to stop; the same call resumes.
    """
    keep_freed_memory()
    names = [stage.name for stage in run.stages]
    store, start = recovery.begin(run.folder, names, worker, run.made_with, run.settings.run.continue_from)
    model, heads = initial_model(run.settings)
    model.language.special_tokens = SpecialTokens.of(run.tokenizer.backend_tokenizer)
    model.to(worker.device)
    if run.settings.scaling.compile:
        compile_parts(model)
    if run.settings.scaling.gradient_checkpointing:
        checkpoint_gradients(model)
    if worker.device.startswith("cuda") and not run.settings.scaling.deterministic:
        worker.emit(Notice("scaling.deterministic is false: if the run is killed, it ends with other weights"))

    metrics: dict[str, Metrics] = {}
    for stage in run.stages:
        attach_heads(stage, model, heads, run.settings)
        if finished := store.finished(stage.name):
            store.load(store.get(finished.best), model)
            metrics[stage.name] = finished.metrics
            continue
        stage = with_features(stage, run.settings, model.visual.trunk, worker)
        stage = with_keys(stage, run.settings, model, worker)
        stage = with_encoded_crops(stage, run.settings, worker.device)
        precision = stage.settings.precision
        if arithmetic.effective(precision, worker.device) != precision:
            worker.emit(Notice(f"{stage.name}.precision: {precision} is a format of GPUs, and float32 on a CPU"))
        with arithmetic.using(precision, worker.device, run.settings.scaling.deterministic):
            metrics[stage.name] = train_stage(stage, model, worker, store, start, run.settings)

    result = {"run": run.settings.run.name, "stages": metrics}
    if worker.rank == 0:
        finished_stages = {name: store.finished(name) for name in metrics}
        result["best"] = {name: done.choice for name, done in finished_stages.items() if done and done.choice}
        if start.stage or not _is_exported(run.folder, worker):
            raise_if_stop_requested(worker)
            export_model(run, metrics, store, worker)
            run.folder.write_sealed(RESULT, result)
        store.attempt.heartbeat(run.stages[-1].name, 0, ended="finished")
    return result


def _is_exported(run: Folder, worker: Worker) -> bool:
    """True if the result and the model of a run are there and whole. What is damaged is reported, and made again."""
    try:
        if read_result(run) is None:
            return False
        model = str(run / MODEL)
        export.verify(model, export.about(model))
    except FileNotFoundError:
        return False
    except Damaged as error:
        worker.emit(Notice(f"{error}; it is written again now"))
        return False
    return True


def initial_model(settings: Settings) -> tuple[GroundedModel, dict[str, nn.Module]]:
    """Returns the streams that the first stage starts from, and the heads that come with them; equal at every call.

    Raises:
        ValueError: `run.start_from` is not a model of these settings; the message names what differs.
    """
    torch.manual_seed(settings.run.seed)
    if settings.run.start_folder is None:
        return build_model(settings.model), {}
    start = export.load(settings.run.start_folder, settings.run.start_stage).model
    model = build_model(settings.model, pretrained=False)
    for stream, trained in ((model.visual, start.visual), (model.language, start.language)):
        fill(stream, trained.float().state_dict(), f"run.start_from: {settings.run.start_from}")
    return model, {name: head.float() for name, head in start.heads.items()}


def attach_heads(stage: Stage, model: GroundedModel, heads: dict[str, nn.Module], settings: Settings) -> None:
    """Give a model the heads of a stage, those that it needs and its own, in the stage's precision.

    Args:
        heads: those trained so far, by name; the stage's own is added.
    """
    if stage.name not in heads or stage.settings.new_head:
        head = build_head(stage.name, settings.model, model, stage.vocabulary, settings.run.seed)
        from_published = isinstance(head, MaskedLanguageHead) and settings.run.start_from is None
        if from_published and (published := load_masked_language_head(settings.model.language)):
            fill(head, published, "the published masked language head")
        heads[stage.name] = head
    learn_logits(heads[stage.name], stage.settings)
    model.heads = nn.ModuleDict({name: heads[name] for name in (*NEEDS.get(stage.name, ()), stage.name)})
    parameter = next(model.parameters())
    model.to(parameter.device, arithmetic.weight_type(stage.settings.precision))


def export_model(run: CheckedRun, metrics: dict[str, Metrics], store: CheckpointStore, worker: Worker) -> None:
    """Write the best weights of every stage to the run's `model/`."""
    model, heads = initial_model(run.settings)
    with tempfile.TemporaryDirectory() as local:
        writer = export.Writer(Path(local), run.settings, run.tokenizer, model, heads)
        for stage in run.stages:
            finished = store.finished(stage.name)
            if finished is None:
                raise RuntimeError(f"stage {stage.name} is not finished in {store.folder}")
            worker.heartbeat()
            weights = store.weights(store.get(finished.best))
            added = writer.add(stage.name, weights, metrics[stage.name], stage.vocabulary)
            if run.settings.run.programs and stage.name in programs.STAGES:
                worker.heartbeat()
                special_tokens = SpecialTokens.of(run.tokenizer.backend_tokenizer)
                if problem := programs.write(Path(local), added, run.settings, model.visual, special_tokens):
                    worker.emit(Notice(problem))
        writer.close({part: f"{dataset.folder} ({describe(dataset)})" for part, dataset in run.datasets.items()})
        store.attempt.ensure_current()  # a newer attempt may have exported the model
        for name in (RESULT, MODEL):
            run.folder.delete(name)
        written = Folder.at(local)
        written.copy([name for name in written.files() if name != export.ABOUT], run.folder / MODEL)
        written.copy([export.ABOUT], run.folder / MODEL)  # last: a folder without it is no model


def describe(dataset: Dataset) -> str:
    """Return what a data set holds, what was left out of it, and its fingerprint, for the model cards."""
    named = {name: f"{count} {name.removeprefix(LEFT_OUT)}" for name, count in dataset.counts.items() if name != "rows"}
    held = ", ".join(text for name, text in named.items() if not name.startswith(LEFT_OUT))
    left_out = ", ".join(text for name, text in named.items() if name.startswith(LEFT_OUT) and dataset.counts[name])
    return f"{held}{left_out and f'; left out: {left_out}'}; fingerprint {dataset.fingerprint[:12]}"
