"""An exported model: a self-contained folder.

README.md                    the model card: data, settings, metrics
groundray.json               format, settings, files and metrics of each stage, the data's vocabularies, and the seal of
                             each file but the cards, which may be edited
language/                    the last stage's language stream and tokenizer, for transformers.AutoModel and
                             AutoTokenizer, and for sentence-transformers (mean pooling)
language-ungrounded/         the language stream at the start of the run; -text-only, -grounded and -relational after
                             the stages that trained it
stages/STAGE/*.safetensors   the visual stream and the heads that a stage changed
stages/STAGE/*.pt2           programs from images and texts to what grounding and retrieval compare, which torch opens
                             without groundray (`programs`)

What is read is compared with its seal, so that a flipped bit is an error. A language stream has the seals of its files
in `seals.json` too, since it may be copied and read without the rest.

A stage's model consists of the newest version of each part up to that stage. A part that a stage did not change is
stored once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundray import config
from groundray.model.build import build_head, build_visual, learn_logits
from groundray.model.card import card, published_weights
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary
from groundray.model.language_stream import LanguageStream
from groundray.model.pretrained import load_encoder, load_tokenizer, quiet
from groundray.model.text_tower import listed
from groundray.model.weights import fill, read_tensors
from groundray.special_tokens import SpecialTokens
from groundray.storage.folder import SEALS, Folder
from groundray.storage.seals import Damaged, FileSeal, OtherVersion, Version

FORMAT = 2
KEYS = "format|settings|stages|vocabulary"  # of a groundray.json without a seal, by earlier versions
REPAIR = "restore it from a copy, or delete the model's folder and rerun the run's command, which exports it again"
ABOUT, CARD, LANGUAGE = "groundray.json", "README.md", "language"
START = "start"  # in place of a stage's name: the model before the first stage
LABELS = {START: "ungrounded", "language": "text-only", "grounding": "grounded"}

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class StageModel:
    """Files of the parts of a stage's model, relative to the export's folder, and its metrics."""

    name: str
    visual: str
    language: str
    heads: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class About:
    """Contents of `groundray.json`.

    Attributes:
        settings: the run's settings.
        stages: the stages in the order in which they were trained.
        vocabulary: the vocabulary of each head, by its stage's name.
        files: the seal of each file, by its name in the folder; empty in exports of earlier versions.
    """

    settings: dict[str, Any]
    stages: tuple[StageModel, ...]
    vocabulary: dict[str, Vocabulary] = field(default_factory=dict)
    files: dict[str, FileSeal] = field(default_factory=dict)

    def stage(self, name: str | None = None) -> StageModel:
        """Return a stage by its name, by default the last.

        Raises:
            ValueError: the model has no such stage.
        """
        if name is None:
            return self.stages[-1]
        by_name = {stage.name: stage for stage in self.stages}
        if name not in by_name:
            raise ValueError(f"the model has no stage {name}: it was trained in {', '.join(by_name)}")
        return by_name[name]


@dataclass(frozen=True)
class Exported:
    """A loaded export: a stage's model in eval mode, its tokenizer and its description."""

    model: GroundedModel
    tokenizer: PreTrainedTokenizerFast
    about: About
    stage: StageModel


def about(url: str | Path) -> About:
    """Return the description of an exported model. No weights are read.

    Raises:
        FileNotFoundError: the folder holds no exported model.
        ValueError: the model has another format.
    """
    folder = Folder.at(url)
    if not folder.exists(ABOUT):
        raise FileNotFoundError(
            f"expected an exported model at {folder}, found no {ABOUT}: give a finished run's model/ folder"
        )
    try:
        content = folder.read_sealed(ABOUT, KEYS, REPAIR, Version("format", FORMAT))
    except OtherVersion as other:
        raise ValueError(
            f"the model at {folder} has format {other.number}, this version reads {FORMAT}: export it again"
        ) from None
    try:
        vocabulary: dict[str, Vocabulary] = {
            head: {kind: tuple(words) for kind, words in listed.items()}
            for head, listed in content["vocabulary"].items()
        }
        files = {name: FileSeal.parse(seal) for name, seal in content.get("files", {}).items()}
        return About(content["settings"], tuple(StageModel(**stage) for stage in content["stages"]), vocabulary, files)
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder}/{ABOUT}", f"it lacks {error}", REPAIR) from None


def verify(url: str | Path, description: About, parts: Iterable[str] = ("",)) -> None:
    """Compare the files of an exported model with their seals. An export of an earlier version has none.

    Args:
        parts: the files and folders to compare; by default all.

    Raises:
        Damaged: a file is missing or differs; the message names it and the repair.
    """
    folder, parts = Folder.at(url), tuple(parts)
    for name, seal in description.files.items():
        if any(part in ("", name) or name.startswith(f"{part}/") for part in parts):
            folder.verify(name, seal, REPAIR)


def load(url: str | Path, stage: str | None = None) -> Exported:
    """Load the model of a stage, by default the last, in eval mode.

    Args:
        url: path or URL of the exported folder.

    Raises:
        FileNotFoundError: the folder holds no exported model.
        Damaged: a file is missing or differs from what was written; the message names it and the repair.
        ValueError: the model has another format or lacks the stage, or its weights do not fit its settings.
    """
    description = about(url)
    chosen = description.stage(stage)
    with Folder.at(url).local_copy() as folder:
        # the language stream's other files are compared as they are loaded
        verify(folder, description, (chosen.visual, f"{chosen.language}/{SEALS}", *chosen.heads.values()))
        return _load(folder, description, chosen)


def _load(folder: Path, description: About, stage: StageModel) -> Exported:
    settings = config.Model(**description.settings["model"])
    tokenizer = load_tokenizer(config.Language(name=str(folder / stage.language)))
    language = LanguageStream(
        load_encoder(config.Language(name=str(folder / stage.language))), SpecialTokens.of(tokenizer.backend_tokenizer)
    )
    model = GroundedModel(build_visual(settings, language.width, pretrained=False), language)
    _fill(model.visual, folder / stage.visual)
    for name, file in stage.heads.items():
        head = build_head(name, settings, model, description.vocabulary[name])
        if name == "grounding":
            learn_logits(head, config.Grounding(**description.settings[name]))
        _fill(head, folder / file)
        model.heads[name] = head
    return Exported(model.eval(), tokenizer, description, stage)


def _fill(module: nn.Module, file: Path) -> None:
    fill(module, read_tensors(file, REPAIR), str(file))


class Writer:
    """Writes an exported model to an empty folder, stage by stage.

    The language streams of the model at `run.start_from` are copied as controls.

    Args:
        model: the model at the start of the run.
        heads: its heads at the start of the run.
    """

    def __init__(
        self,
        folder: Path,
        settings: config.Settings,
        tokenizer: PreTrainedTokenizerFast,
        model: GroundedModel,
        heads: Mapping[str, nn.Module],
    ):
        self._folder, self._tokenizer, self._encoder = folder, tokenizer, model.language.encoder
        self._settings = settings.model_dump(mode="json")
        self._written: dict[str, tuple[Tensors, str]] = {}
        self._stages: list[StageModel] = []
        self._vocabulary: dict[str, Vocabulary] = {}
        self._labels = dict(LABELS)
        self._started_from = settings.model
        self._start_card: bytes | None = None
        if settings.run.start_folder is not None:
            before = about(settings.run.start_folder)
            self._vocabulary |= before.vocabulary
            self._keep_controls(Folder.at(settings.run.start_folder), before.stage(settings.run.start_stage))
            self._started_from = config.Model(**before.settings["model"])
        state = {f"visual.{name}": tensor for name, tensor in model.visual.state_dict().items()}
        state |= {f"language.{name}": tensor for name, tensor in model.language.state_dict().items()}
        for name, head in heads.items():
            state |= {f"heads.{name}.{key}": tensor for key, tensor in head.state_dict().items()}
        self._start = self._files(START, state)["language"]

    def add(self, stage: str, state: Tensors, metrics: Mapping[str, float], vocabulary: Vocabulary) -> StageModel:
        """Write the parts that a stage changed, and return the files of its model.

        Args:
            state: state dict of the stage's model, with its streams and heads.
            vocabulary: names of the stage's classes and predicates.
        """
        self._vocabulary[stage] = vocabulary
        files = self._files(stage, state)
        heads = {name.removeprefix("heads."): file for name, file in files.items() if name.startswith("heads.")}
        self._stages.append(StageModel(stage, files["visual"], files["language"], heads, dict(metrics)))
        return self._stages[-1]

    def close(self, data: Mapping[str, str]) -> None:
        """Write `groundray.json`, the model cards and the last stage's language stream.

        Args:
            data: a line about each data set, by `stage.part`, for the model cards.
        """
        last = self._stages[-1]
        shutil.copytree(self._folder / last.language, self._folder / LANGUAGE)
        description = About(self._settings, tuple(self._stages), self._vocabulary)
        self._write_cards(data)
        written = Folder.at(self._folder)
        files = [name for name in written.files() if not is_card(name)]
        seals = {name: written.seal(name).as_json() for name in files}
        written.write_sealed(ABOUT, {"format": FORMAT, **asdict(description), "files": seals})

    def _write_cards(self, data: Mapping[str, str]) -> None:
        """Write the card of the model and of each language stream; those of an earlier run keep theirs."""
        name = self._settings["run"]["name"]
        metrics = {stage.name: stage.metrics for stage in self._stages}
        published = published_weights(self._started_from)
        text = card(name, self._settings, metrics, data, list(published.values()))
        (self._folder / CARD).write_text(text, encoding="utf-8")
        counts = [(stage.language, count) for count, stage in enumerate(self._stages, start=1)]
        streams = {**dict(reversed(counts)), self._start: 0, LANGUAGE: len(self._stages)}
        for folder, count in streams.items():
            trained_in = {stage.name: stage.metrics for stage in self._stages[:count]}
            base = [published["language"]] if "language" in published else []
            text = card(f"{name}/{folder}", self._settings, trained_in, data, base, stream=True)
            (self._folder / folder / CARD).write_text(text, encoding="utf-8")
        if self._start_card is not None:
            (self._folder / self._start / CARD).write_bytes(self._start_card)

    def _files(self, stage: str, state: Tensors) -> dict[str, str]:
        """Return the file of each part of a stage's model, after writing the parts that changed."""
        return {part: self._file(stage, part, tensors) for part, tensors in _parts(state).items()}

    def _file(self, stage: str, part: str, tensors: Tensors) -> str:
        before, file = self._written.get(part, ({}, ""))
        if _equal(before, tensors):
            return file
        if part == "language":
            file = f"{LANGUAGE}-{self._labels.get(stage, stage)}"
            save_language(self._encoder, self._tokenizer, self._folder / file, tensors)
        else:
            name = f"{part.removeprefix('heads.')}-head" if part.startswith("heads.") else part
            file = f"stages/{stage}/{name}.safetensors"
            (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(dict(tensors), self._folder / file)
        self._written[part] = tensors, file
        return file

    def _keep_controls(self, other: Folder, start: StageModel) -> None:
        """Copy the language streams of the model that the run starts from, and keep its name and card for the first of
        them."""
        controls = [name for name in other.names() if name.startswith(f"{LANGUAGE}-")]
        verify(str(other), about(str(other)), controls)
        for name in controls:
            other.download(self._folder / name, name)
        self._labels[START] = start.language.removeprefix(f"{LANGUAGE}-")
        card_file = f"{start.language}/{CARD}"
        self._start_card = other.read_bytes(card_file) if other.exists(card_file) else None


def save_language(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, weights: Tensors) -> None:
    """Write a language stream for `transformers` and `sentence-transformers` (mean pooling, special tokens included).

    Args:
        encoder: model whose configuration is written.
        weights: state dict of the language stream.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model, named = listed(encoder, {name.removeprefix("bert."): weight for name, weight in weights.items()})
    with quiet():
        model.save_pretrained(folder, state_dict=named)
        tokenizer.save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    pooling = {"word_embedding_dimension": encoder.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")
    written = Folder.at(folder)
    written.seal_files([name for name in written.files() if not is_card(name)])


def last_stream(url: str | Path) -> str:
    """Return the folder of an export's last language stream: `language`, or, where that was renamed, the stage's own.

    Raises:
        ValueError: the export cannot be read.
    """
    return LANGUAGE if Folder.at(url).exists(LANGUAGE) else about(url).stage().language


def rename_language(folder: Path, name: str, former: str = LANGUAGE) -> None:
    """Rename the folder of the last language stream in an export, in its seals too. Nothing else refers to it: the last
    stage's model has the same stream under its own name.

    Raises:
        FileNotFoundError, ValueError: the folder holds no exported model that can be read.
    """
    about(folder)
    content = Folder.at(folder).read_sealed(ABOUT, KEYS, REPAIR)
    (folder / former).rename(folder / name)
    if "files" in content:
        content["files"] = {
            f"{name}/{file.removeprefix(f'{former}/')}" if file.startswith(f"{former}/") else file: seal
            for file, seal in content["files"].items()
        }
    Folder.at(folder).write_sealed(ABOUT, content)


def is_card(name: str) -> bool:
    """Return True if a file of an exported model is a model card, which users may edit: it is not sealed."""
    return Path(name).name == CARD


def _parts(state: Tensors) -> dict[str, dict[str, Tensor]]:
    """Return a state dict by part (`visual`, `language`, `heads.NAME`), on the CPU, floating point as float32."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        depth = 2 if name.startswith("heads.") else 1
        split = name.split(".")
        copied = tensor.detach().to("cpu", copy=True).contiguous()
        copied = copied.float() if copied.is_floating_point() else copied
        parts.setdefault(".".join(split[:depth]), {})[".".join(split[depth:])] = copied
    return parts


def _equal(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
