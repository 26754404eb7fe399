"""Checks before a run asks for workers: storage, data, tokenizer, start model and the run's name.

`check` gives a `CheckedRun`, which is passed on: a process opens the shards and loads the tokenizer once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedTokenizerFast

from groundray.config import Settings, SettingsError, StageName, TrainedLanguage, flatten
from groundray.config import Stage as StageSettings
from groundray.data.plan import Plan
from groundray.data.schema import Dataset
from groundray.data.shards import verify_shards
from groundray.data.truncation import Truncation, count_truncation
from groundray.data.window import describe_window
from groundray.model import export
from groundray.model.build import build_head, build_model, learn_logits
from groundray.model.freezing import freeze, trainable_counts
from groundray.model.heads import Vocabulary
from groundray.model.layer_order import layers_above_trunk
from groundray.model.lora import add_adapters
from groundray.model.pretrained import load_tokenizer
from groundray.model.timm_trunk import TIMM
from groundray.model.trunk import build_trunk, check_trunk
from groundray.stage.protocol import Stage, check_reported, criterion, direction_of, vocabulary_of
from groundray.stage.stages import NEEDS, STAGES
from groundray.storage.folder import Folder, format_bytes
from groundray.storage.object_store import is_store, probe
from groundray.training import identity, keys
from groundray.training.attempts import Attempt
from groundray.training.checkpoint import CheckpointStore
from groundray.training.compilation import check_compiler
from groundray.training.encoder_check import check_encoder
from groundray.training.identity import Identity
from groundray.training.jpeg_decoding import check_decoder
from groundray.training.layout import CHECKPOINTS, features_folder, folder_of
from groundray.training.recovery import another_runs, check_continued
from groundray.training.trunk_features import refusal
from groundray.versions import code_version, library_versions, version_of

LEAST_OPERATOR_LR = 1e-4  # of Adam, for operators of standard deviation 1: 3,000 steps change entries by up to 0.3


@dataclass(frozen=True)
class CheckedRun:
    """A run whose data and start model can be used.

    Attributes:
        settings: with the window of each stage.
        folder: where the run is kept.
        tokenizer: of the language stream.
        stages: in order, bound to their shards.
        claimed_hash: `settings_hash` of the driver's run, which claimed the folder, where this one is a worker's:
            workers have absolute paths. None in the driver.
    """

    settings: Settings
    folder: Folder
    tokenizer: PreTrainedTokenizerFast
    stages: tuple[Stage, ...]
    claimed_hash: str | None = None

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The stages' data sets, by `stage.train` and `stage.val`."""
        return {
            f"{stage.name}.{part}": source.dataset
            for stage in self.stages
            for part, source in (("train", stage.train), ("val", stage.val))
        }

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each data set."""
        return {part: dataset.fingerprint for part, dataset in self.datasets.items()}

    @property
    def settings_hash(self) -> str:
        """The hash of the settings and data with which the run's folder was claimed."""
        return self.claimed_hash or identity.settings_hash(self.settings, self.fingerprints)

    @property
    def made_with(self) -> dict[str, Any]:
        """What results depend on: a hash of settings and data, the version of the code, and those of libraries."""
        trunk = self.settings.model.trunk.name
        return {
            "settings": self.settings_hash,
            "code": code_version(),
            "versions": library_versions() | ({"timm": version_of("timm")} if trunk.startswith(TIMM) else {}),
        }


def check_storage(settings: Settings) -> None:
    """Check that every object store that the run uses answers, and that a local `run.storage` can be written; takes
    seconds.

    Raises:
        OSError, SettingsError: one does not or cannot; the message names the setting and the repair.
    """
    _check_stores(settings)
    if problem := _write_problem(settings):
        raise SettingsError(problem)


def _check_stores(settings: Settings) -> None:
    unused = {name for name in get_args(StageName) if name not in settings.stages}
    for name, value in flatten(settings.model_dump(exclude=unused)):
        if isinstance(value, str) and is_store(value):
            try:
                probe(value)
            except OSError as error:
                raise OSError(f"{name}: {error}") from None
            except ValueError as error:
                raise SettingsError(f"{name}: {error}") from None


def _write_problem(settings: Settings) -> str | None:
    """Return why a local folder of the run cannot be written; None if it can, or is in a store, which a write would
    tell."""
    folder = folder_of(settings)
    if not folder.local:
        return None
    place = next(path for path in (Path(folder.path), *Path(folder.path).parents) if os.path.exists(path))  # noqa: PTH110  no error below what cannot be read
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return None
    got = "which cannot be written" if place.is_dir() else "a file"
    return (
        f"run.storage: expected a folder that can be written, got {place}, {got}: give another --run.storage FOLDER, "
        "or make this one writable"
    )


def check(settings: Settings) -> CheckedRun:
    """Open the shards of every stage, load the tokenizer and check the model that the run starts from.

    Raises:
        FileNotFoundError, ValueError: shards, tokenizer or weights cannot be used, or there is no compiler for
            `scaling.compile` or no decoder for `data.jpeg_decoding`; the message names the repair.
    """
    start = check_model(settings)
    settings = _with_recorded_windows(settings)
    tokenizer = load_tokenizer(settings.model.language)
    check_encoder(settings, tokenizer)
    start_heads = _heads(start, settings)
    stages = tuple(STAGES[name](settings, tokenizer) for name in settings.stages)
    if continued := _continued(settings):
        _check_fits_checkpoint(stages[0], continued)
    for stage in stages:
        _check_validations(stage)
        if start and stage.name in start_heads and not stage.settings.new_head:
            _check_start_vocabulary(stage, start.vocabulary[stage.name], str(settings.run.start_from))
        _check_warmup(stage)
        _check_adapters(stage, settings)
        _check_trunk_layers(stage, settings)
    settings = settings.with_windows({stage.name: stage.train.plan.window for stage in stages})
    return CheckedRun(settings, folder_of(settings), tokenizer, stages)


def check_model(settings: Settings) -> export.About | None:
    """Check what needs no data: compiler, decoder, trunk, and the model that the run starts from. Returns what is known
    of that model, None if the run starts from no model of groundray's.

    Raises:
        FileNotFoundError, ValueError: as `check`.
    """
    check_compiler(settings)
    check_decoder(settings)
    trunk = settings.model.trunk
    check_trunk(trunk.name, "none" if settings.run.start_from else trunk.weights, settings.model.image_size)
    if settings.run.start_from and not settings.run.start_folder:  # else it would start from scratch
        raise SettingsError(
            f"run.start_from: expected a folder or URL, or its files in run.start_files, got {settings.run.start_from}"
            ": download the model with `mlflow artifacts download` and give its folder"
        )
    if continued := _continued(settings):
        check_continued(continued, settings.stages[0])
    start = export.about(settings.run.start_folder) if settings.run.start_folder else None
    for index, name in enumerate(settings.stages):
        for needed in NEEDS.get(name, ()):
            if needed not in _heads(start, settings) and needed not in settings.stages[:index]:
                raise ValueError(
                    f"stage {name} needs the head of stage {needed}, which has not been trained: put {needed} before "
                    "it (stages), or start from a model that has it (run.start_from)"
                )
    return start


def _continued(settings: Settings) -> str | None:
    """Return the checkpoint of another run that a run continues; None if it continues none, or has its own already."""
    return settings.run.continue_from if not (folder_of(settings) / CHECKPOINTS).exists() else None


def _heads(start: export.About | None, settings: Settings) -> set[str]:
    """Return the heads of the model that a run starts from."""
    return set(start.stage(settings.run.start_stage).heads) if start else set()


def _check_warmup(stage: Stage) -> None:
    """Raise SettingsError if a stage ends before its learning rates have warmed up."""
    warmup, steps = stage.settings.optimizer.warmup, stage.settings.epochs * stage.train.plan.steps
    if warmup >= steps:
        raise SettingsError(
            f"{stage.name}.optimizer.warmup: expected fewer than the stage's {steps} steps, got {warmup}: shorten the "
            "warm-up, or train for more epochs"
        )


def _check_fits_checkpoint(stage: Stage, url: str) -> None:
    """Check that a stage can go on from another run's checkpoint: from its place in the epochs, with its moments.

    Raises:
        SettingsError: it cannot; the message gives the repair.
    """
    store, name = another_runs(url)
    checkpoint, steps = store.get(name), stage.train.plan.steps
    cursor, epochs = checkpoint.cursor, stage.settings.epochs
    if cursor.epoch >= epochs:
        raise SettingsError(
            f"run.continue_from: expected a checkpoint within the {epochs} of {stage.name}.epochs, got {url} with "
            f"{cursor.epoch} done: raise {stage.name}.epochs, or continue an earlier checkpoint"
        )
    if checkpoint.done != cursor.epoch * steps + cursor.step:
        raise SettingsError(
            f"run.continue_from: expected a checkpoint of {steps} steps an epoch, as {stage.name}.batch_size and "
            f"{stage.name}.train give, got {url} with {checkpoint.done} steps at step {cursor.step} of epoch "
            f"{cursor.epoch}: use that run's batch size and data, or start from its model (run.start_from)"
        )
    if not (recorded := identity.recorded(store.attempt.run)):
        return
    before, now = _numbering(recorded.stage(stage.name)), _numbering(stage.settings)
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        expected, got = (
            ", ".join(f"{stage.name}.{name} {values.get(name)}" for name in different) for values in (before, now)
        )
        raise SettingsError(
            f"run.continue_from: expected {expected}, with which {url} was trained, got {got}: its moments fit no "
            "other parameters. Use that run's settings, or start from its model (run.start_from)"
        )


def _numbering(settings: StageSettings) -> dict[str, Any]:
    """Return the settings that decide a checkpoint's parameters, their numbers and their moments, by name."""
    optimizer, trains = settings.optimizer, settings.trained
    return {
        **{f"trains.{name}": value for name, value in flatten(trains.model_dump() if trains else {})},
        "optimizer.kind": optimizer.kind,
        # the optimizer numbers its parameters by group: by decay or not, and by layer
        "optimizer.weight_decay": "0" if optimizer.weight_decay == 0 else "above 0",
        "optimizer.layer_decay": "1" if optimizer.layer_decay == 1 else "below 1",
        "optimizer.trunk_layer_decay": "1" if optimizer.trunk_layer_decay == 1 else "below 1",
    }


def _check_adapters(stage: Stage, settings: Settings) -> None:
    """Raise SettingsError if the language stream lacks what a stage adapts, or peft is not installed. Loads no
    weights."""
    trains = stage.settings.trained
    if isinstance(trains, TrainedLanguage) and trains.lora:
        with torch.device("meta"):
            model = build_model(settings.model, pretrained=False)
        try:
            add_adapters(model, stage.name, trains)
        except ValueError as error:
            raise SettingsError(f"{stage.name}: {error}") from None


def _check_trunk_layers(stage: Stage, settings: Settings) -> None:
    """Raise SettingsError if a stage's rates decay from layer to layer of a trunk whose layers have no order."""
    if stage.settings.optimizer.trunk_layer_decay < 1:
        with torch.device("meta"):
            model = build_model(settings.model, pretrained=False)
        try:
            layers_above_trunk(model)
        except ValueError as error:
            raise SettingsError(f"{stage.name}.optimizer.trunk_layer_decay: {error}") from None


def _with_recorded_windows(settings: Settings) -> Settings:
    """Return the settings with the windows with which the run began, in stages that give none: its order depends on
    them."""
    unset = [name for name in settings.stages if not settings.window(name)]
    if not unset or not (began := identity.recorded(folder_of(settings))):
        return settings
    windows = {name: began.window(name) for name in unset if began.stage(name)}
    return settings.with_windows({name: window for name, window in windows.items() if window})


def verify(run: CheckedRun, report: Callable[[str], None]) -> None:
    """Read all shards of a run and compare every byte with its checksum.

    Args:
        report: takes a line for each data set.

    Raises:
        ValueError: a shard is damaged; the message names it, its damaged row group and the repair.
    """
    verified: set[str] = set()
    for part, dataset in run.datasets.items():
        if dataset.fingerprint not in verified:
            verify_shards(dataset)
            size = format_bytes(sum(shard.bytes for shard in dataset.shards))
            report(f"{part}  {len(dataset.shards)} shards verified ({size})")
        verified.add(dataset.fingerprint)


def truncations(run: CheckedRun) -> dict[str, Truncation]:
    """Return what `max_tokens` cuts off the texts of each data set of a run, by `stage.train` and `stage.val`."""
    counted = {
        f"{stage.name}.{part}": count_truncation(source)
        for stage in run.stages
        for part, source in (("train", stage.train), ("val", stage.val))
    }
    return {part: truncation for part, truncation in counted.items() if truncation}


def truncation_warning(part: str, truncation: Truncation) -> str:
    """Return the warning that a data set loses much of its text, with the repair."""
    repair = f"raise --{part.partition('.')[0]}.max_tokens"
    if truncation.what == "lines":
        repair += ", or split the lines with `prepare text --max-words`"
    return f"{part}: {truncation}: {repair}"


def still_operators(settings: Settings) -> str | None:
    """Return the warning that the relational stage cannot turn its operators, with the repair; None where it can.

    Adam changes an entry by about the learning rate a step, and operators are normalised: entries of standard
    deviation 1 need a learning rate that is not tiny beside it.
    """
    if "relational" not in settings.stages or settings.model.relational.operator_initialization != "normal":
        return None
    optimizer = settings.stage("relational").optimizer
    name, rate = ("head_lr", optimizer.head_lr) if optimizer.head_lr else ("lr", optimizer.lr)
    if optimizer.kind == "sgd" or rate >= LEAST_OPERATOR_LR:
        return None
    return (
        f"relational.optimizer.{name}: at {rate:g}, predicate operators of standard deviation 1 hardly move: set "
        f"--model.relational.operator_initialization xavier, or a learning rate of at least {LEAST_OPERATOR_LR:g}"
    )


def claim(run: CheckedRun) -> Identity:
    """Return the identity of the run in its folder, minted at its first start.

    Raises:
        OSError: the storage cannot be written.
        SettingsError: the name holds a run of another configuration or other data; the message prints the difference.
        OtherFormat: a checkpoint of the run has a format that this version does not read.
    """
    CheckpointStore(Attempt(run.folder)).check_formats()
    return identity.claim(run.folder, run.settings, run.fingerprints)


def _check_validations(stage: Stage) -> None:
    """Raise SettingsError if a stage cannot be validated, or its best chosen, as its settings say."""
    best, every, steps = criterion(stage), stage.settings.validate_every_steps, stage.train.plan.steps
    check_reported(f"{stage.name}.best", best.metric, stage)
    if direction_of(best.metric) not in (None, best.mode):
        right = best._replace(mode="max" if best.mode == "min" else "min")
        better = "higher" if right.mode == "max" else "lower"
        raise SettingsError(f"{stage.name}.best: expected {right}, since {better} is better, got {best}")
    if every and every > steps:
        raise SettingsError(
            f"{stage.name}.validate_every_steps: expected at most {steps}, the steps of an epoch, got {every}: null "
            "validates at the end of each epoch alone"
        )


def _check_start_vocabulary(stage: Stage, start: Vocabulary, origin: str) -> None:
    """Raise ValueError if a stage's data have another vocabulary than the head that the stage starts from."""
    for kind, words in start.items():
        ours = stage.vocabulary.get(kind, ())
        if ours != words:
            missing = ", ".join(sorted(set(words) - set(ours))[:5])
            raise ValueError(
                f"{stage.name}.train: its shards have {len(ours)} {kind}, the model at {origin} was trained with "
                f"{len(words)}{f' (here without {missing})' if missing else ''}: prepare the shards with the same "
                f"vocabulary, or set {stage.name}.new_head to start with a new head"
            )


@dataclass(frozen=True)
class StagePreview:
    """A preview of a stage.

    Attributes:
        data: lines about the training shards, the validation shards, a window, their texts, trunk features and
            validations.
        trainable: number of trained parameters, by module.
    """

    name: str
    data: tuple[str, ...]
    trainable: dict[str, int]


@dataclass(frozen=True)
class Preview:
    """A preview of a run. `problems` are the reasons why it cannot start, `warnings` what a user should know first."""

    folder: str
    resumes: bool
    stages: tuple[StagePreview, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def preview(settings: Settings) -> Preview:
    """Describe the stages, samples, steps and trained parameters of a run. Loads no weights and starts no cluster."""
    try:
        _check_stores(settings)
        folder = folder_of(settings)
        resumes = folder.exists(CHECKPOINTS)
        CheckpointStore(Attempt(folder)).check_formats()
    except (OSError, ValueError) as error:
        return Preview(f"{settings.run.storage}/{settings.run.name}", False, (), (str(error),))
    problems = [problem] if (problem := _write_problem(settings)) else []
    stages = [_preview_stage(settings, name, problems) for name in settings.stages]
    warnings: list[str] = []
    try:
        run = check(settings)
        identity.check(folder, run.settings, run.fingerprints)
        cut = truncations(run)
        warnings += [truncation_warning(part, counted) for part, counted in cut.items() if counted.is_loud]
        warnings += [warning] if (warning := still_operators(settings)) else []
        texts = {part: f"{part.partition('.')[2]} text: {counted}" for part, counted in cut.items()}
        workers = settings.scaling.min_workers
        windows = {stage.name: describe_window(stage.train.dataset, stage.train.plan, workers) for stage in run.stages}
        features = {stage.name: _describe_features(stage, settings) for stage in run.stages}
        keys_of = {stage.name: _describe_keys(stage, settings) for stage in run.stages}
        validations = {stage.name: _describe_validations(stage) for stage in run.stages}
        stages = [
            replace(
                stage,
                data=(
                    *stage.data,
                    windows[stage.name],
                    *(line for part, line in texts.items() if part.partition(".")[0] == stage.name),
                    features[stage.name],
                    *keys_of[stage.name],
                    validations[stage.name],
                ),
            )
            for stage in stages
        ]
    except (OSError, ValueError) as error:
        if not any(str(error) in problem for problem in problems):
            problems.append(str(error))
    return Preview(str(folder), resumes, tuple(stages), tuple(problems), tuple(warnings))


def without_data(settings: Settings) -> Preview:
    """Describe a run whose data are not there yet: where it would be."""
    return Preview(str(folder_of(settings)), False, (), ())


def _preview_stage(settings: Settings, name: str, problems: list[str]) -> StagePreview:
    """Preview a stage; what is wrong with it is added to `problems`."""
    stage = settings.stage(name)
    data, vocabulary = [], None
    for part, shards, shuffle in (("train", stage.train, True), ("val", stage.val, False)):
        try:
            dataset = Dataset.open(shards)
            plan = Plan(dataset.group_sizes, stage.batch_size, settings.chunks, shuffle=shuffle, drop_last=shuffle)
        except (OSError, ValueError) as error:
            problems.append(f"{name}.{part}: {error}")
            continue
        vocabulary = vocabulary or vocabulary_of(dataset)
        dropped = f", {plan.dropped} samples dropped an epoch" if plan.dropped else ""
        total = f" x {stage.epochs} epochs" if shuffle else ""
        data.append(f"{part}: {plan.rows} samples, {plan.steps} steps of {plan.batch_size}{total}{dropped}")
    try:
        trainable = _count_trainable(settings, name, vocabulary)
    except (OSError, ValueError) as error:
        problems.append(f"{name}: {error}")
        trainable = {}
    return StagePreview(name, tuple(data), trainable)


def _describe_validations(stage: Stage) -> str:
    """Says when a stage is validated, what chooses its best validation, and what ends it early."""
    every, patience, best = stage.settings.validate_every_steps, stage.settings.patience, criterion(stage)
    within = f"every {every} steps of an epoch and " if every else ""
    ends = f"; {patience} without a better one end the stage" if patience else ""
    which = "lowest" if best.mode == "min" else "highest"
    return f"validation: {within}at the end of each epoch, best: {which} {best.metric}{ends}"


def _describe_features(stage: Stage, settings: Settings) -> str:
    """Says whether a stage reads trunk features instead of images, and how much room they take."""
    if reason := refusal(stage, settings):
        return f"trunk features: not used, {reason}"
    with torch.device("meta"):
        shape = build_trunk(settings.model.trunk.name, image_size=settings.model.image_size).shape
    images = stage.train.dataset.rows + stage.val.dataset.rows
    bytes = 2 * prod(shape) * images
    size = format_bytes(bytes)
    limit, folder = settings.features.max_gb, features_folder(settings)
    if limit and bytes > limit * 1e9:
        return f"trunk features: not used, they take {size}, features.max_gb allows {format_bytes(int(limit * 1e9))}"
    place = next((path for path in (Path(folder.path), *Path(folder.path).parents) if path.exists()), None)
    free = f" ({format_bytes(shutil.disk_usage(place).free)} free)" if folder.local and place else ""
    return f"trunk features: {images:,} images, {size}, in {folder}{free}; made once, images where they do not fit"


def _describe_keys(stage: Stage, settings: Settings) -> tuple[str, ...]:
    """Says whether a stage whose heads take keys reads them; nothing of other stages."""
    if not stage.takes_keys:
        return ()
    if reason := keys.refusal(stage, settings):
        return (f"keys: not used, {reason}",)
    return (
        f"keys: of images and all captions, in {features_folder(settings)}; made once, computed where they do not fit",
    )


def _count_trainable(settings: Settings, name: str, vocabulary: Vocabulary | None) -> dict[str, int]:
    """Count the parameters that a stage trains, on a model without memory.

    Args:
        vocabulary: of the shards; None for one of the sizes that the settings expect.
    """
    stage = settings.stage(name)
    counts = {kind: getattr(stage, kind, None) for kind in ("classes", "predicates")}
    expected = {kind: ("?",) * count for kind, count in counts.items() if count}
    with torch.device("meta"):
        model = build_model(settings.model, pretrained=False)
        model.heads[name] = build_head(name, settings.model, model, {**expected, **(vocabulary or {})})
        learn_logits(model.heads[name], stage)
    freeze(model, name, stage.trained)
    add_adapters(model, name, stage.trained)
    return trainable_counts(model)
