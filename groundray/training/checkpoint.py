"""Checkpoints on storage: a folder each of safetensors and JSON, written by rank 0 and read by every rank.

    RUN/checkpoints/grounding-00003-000012-a0002-3f9a81c0/   stage, cursor (epoch, step) to resume at, attempt
        model.safetensors                                    what the stage hands on: averaged weights, merged adapters
        optimizer.safetensors
        training.safetensors                                 weights of the training itself where they are others
        manifest.json                                        written last: a folder without it is no checkpoint
    RUN/checkpoints/grounding-done-a0002-3f9a81c0.json       a finished stage, which is not trained again
    RUN/history/grounding-00003-000012-a0002-3f9a81c0.jsonl  the steps since the previous checkpoint: history.py

The manifest holds the size and SHA-256 of each file, the cursor, and the name of the stage's best checkpoint so far.
A stage keeps its last two checkpoints, its best one, the one before the best, and those that `checkpoints.keep_every`
asked for when they were written. An attempt sees only those that it
accepts (attempts.py). Nothing is ever unpickled.

The format is checked before anything else. A checkpoint of another format is whole, for another version of groundray:
it is refused by name, and neither counted as damaged nor deleted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import safetensors.torch
from torch import Tensor, nn, optim

from groundray.data.plan import Cursor
from groundray.model.lora import merged_weights, plain_name
from groundray.model.weights import fill
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged, FileSeal, OtherVersion, Version
from groundray.training import history
from groundray.training.attempts import Attempt, latest, token_of
from groundray.training.layout import CHECKPOINTS
from groundray.training.weight_average import WeightAverage, averaged
from groundray.versions import version_of

FORMAT = 3
MANIFEST, DAMAGED = "manifest.json", "damaged.json"
MODEL, OPTIMIZER, TRAINING = "model.safetensors", "optimizer.safetensors", "training.safetensors"
AVERAGE = "average/"  # begins the names of averaged adapters in TRAINING; other averages are in MODEL
KEEP_LAST = 2  # checkpoints of a stage, besides its best
FIELDS = ("stage", "done", "best", "metrics", "skipped", "saved_at", "epoch", "step", "files")  # of a manifest


class OtherFormat(ValueError):
    """A checkpoint has another format than this version of groundray reads."""

    def __init__(self, name: str, format: str, written_by: str = ""):
        super().__init__(
            f"{name} has {format}, this version of groundray reads format {FORMAT}: resume the run with "
            f"{f'groundray {written_by}' if written_by else 'the version of groundray that wrote it'}, "
            "or start another with --run.name"
        )


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        name: its folder in the store.
        cursor: the next global batch; one past an epoch's last while its validation is due.
        done: steps of the stage so far.
        best: the name of the stage's best checkpoint so far, possibly this one; None before the first validation.
        metrics: the validation metrics of the best one.
        skipped: steps left out because their loss or gradient was not finite.
        saved_at: when the state was copied from the model, in seconds since 1970.
        validated: True if its weights are validated.
        stale: consecutive validations without a new best.
        kept: True if it is kept whatever comes after it.
    """

    name: str
    stage: str
    cursor: Cursor
    done: int
    best: str | None
    metrics: dict[str, float]
    skipped: int = 0
    saved_at: float = 0.0
    validated: bool = False
    stale: int = 0
    kept: bool = False


@dataclass(frozen=True)
class Finished:
    """The record of a finished stage.

    Attributes:
        best: its best checkpoint, which holds the resulting weights.
        choice: how it was chosen: `TrainState.choice`; empty in a record of an earlier version.
    """

    name: str
    metrics: dict[str, float]
    best: str
    choice: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything that a checkpoint holds, to be written while training continues.

    Attributes:
        history: lines about the steps since the previous checkpoint.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Mapping[str, Tensor]]
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of a run that an attempt accepts or has written."""

    attempt: Attempt
    folder: Folder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.attempt.run / CHECKPOINTS)

    @staticmethod
    def at(run: Folder) -> CheckpointStore:
        """Returns the store of the run in a folder, as its latest attempt sees it."""
        return CheckpointStore(latest(run))

    def committed(self, stage: str) -> list[Checkpoint]:
        """Returns the stage's checkpoints, oldest first, without those whose manifest cannot be read."""
        checkpoints = [self._read(name) for name in self._manifests(stage)]
        # a run that was stopped in a validation has two checkpoints at that step
        return sorted((one for one in checkpoints if one), key=lambda one: (one.cursor, one.validated))

    def last(self, stage: str) -> Checkpoint | None:
        """Returns the stage's newest checkpoint, unverified; an attempt resumes from the last `usable` one."""
        return next(reversed(self.committed(stage)), None)

    def finished(self, stage: str, warn: Callable[[str], None] = lambda _: None) -> Finished | None:
        """Returns the record of a finished stage; None if it is not finished or its record is damaged."""
        for name in self.folder.names():
            if name.startswith(f"{stage}-done-") and self.attempt.accepts(name):
                try:
                    record = self._record(name)
                except Damaged as error:
                    warn(f"{error}; the stage resumes from its last checkpoint")
                    continue
                return Finished(name, record["metrics"], record["best"], record.get("choice", {}))
        return None

    def check_formats(self) -> None:
        """Check that all checkpoints in the folder, of whichever attempt, have the format that this version reads.

        Raises:
            OtherFormat: one has another; the message names it.
        """
        for name in self.folder.names():
            with contextlib.suppress(Damaged):  # recovery quarantines them
                if name.endswith(".json"):
                    self._record(name)
                elif (self.folder / name).exists(MANIFEST):
                    self._manifest(name)

    def mark_finished(
        self,
        stage: str,
        metrics: Mapping[str, float],
        best: str,
        lines: tuple[str, ...] = (),
        choice: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the record of a finished stage (`Finished`), and its last lines of history."""
        self.attempt.ensure_current()
        name = self.attempt.name(f"{stage}-done")
        history.write(self.attempt.run, name, lines)
        record = {"format": FORMAT, "stage": stage, "metrics": dict(metrics), "best": best, "choice": choice or {}}
        self.folder.write_sealed(f"{name}.json", record)

    def name(self, stage: str, cursor: Cursor) -> str:
        """Returns the name of this attempt's checkpoint at a cursor."""
        return self.attempt.name(f"{stage}-{cursor.epoch:05d}-{cursor.step:06d}")

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint whole or not at all, then delete those that it makes superfluous.

        Raises:
            Superseded: a newer attempt has begun; nothing was committed.
            OSError: the storage cannot be written; earlier checkpoints are unchanged.
        """
        checkpoint = snapshot.checkpoint
        self.attempt.ensure_current()
        try:
            self._write(snapshot)
        except OSError as error:
            raise OSError(
                *([error.errno] if error.errno else []),  # an object store has none
                f"checkpoint {self.folder}/{checkpoint.name} cannot be written: {error}; earlier ones are intact: "
                "free space there, or repair the storage",
            ) from error
        self._delete_superfluous(checkpoint.stage)

    def _write(self, snapshot: Snapshot) -> None:
        checkpoint, files = snapshot.checkpoint, {}
        folder = (self.folder / checkpoint.name).make()
        for file, tensors in snapshot.tensors.items():
            content = safetensors.torch.save(dict(tensors))
            folder.write_bytes(file, content)
            files[file] = FileSeal.of(content).as_json()
        history.write(self.attempt.run, checkpoint.name, snapshot.history)
        self.attempt.ensure_current()
        self._write_manifest(checkpoint, files)

    def take_over(self, other: CheckpointStore, name: str) -> Checkpoint:
        """Copy a checkpoint of another run: its weights, moments and cursor. What was best there is not best here.

        Raises:
            Damaged, FileNotFoundError: the checkpoint is damaged or missing.
        """
        checkpoint = other.get(name)
        if damage := other._damage(name):
            raise Damaged(f"{other.folder}/{name}", damage, "continue from another checkpoint")
        taken = replace(
            checkpoint,
            name=self.name(checkpoint.stage, checkpoint.cursor),
            best=None,
            metrics={},
            stale=0,
            kept=False,
        )
        files: dict[str, dict[str, Any]] = other._manifest(name)["files"]
        (other.folder / name).copy(list(files), (self.folder / taken.name).make())
        self._write_manifest(taken, files)
        return taken

    def _write_manifest(self, checkpoint: Checkpoint, files: Mapping[str, Any]) -> None:
        """Write the manifest of a checkpoint whose files are written, which commits it."""
        folder = self.folder / checkpoint.name
        fields = {key: value for key, value in vars(checkpoint).items() if key not in ("name", "cursor")}
        cursor = {"epoch": checkpoint.cursor.epoch, "step": checkpoint.cursor.step}
        written_by = {"format": FORMAT, "groundray": version_of("groundray")}
        folder.write_sealed(MANIFEST, {**written_by, **fields, **cursor, "files": dict(files)})

    def _delete_superfluous(self, stage: str) -> None:
        """Delete a stage's older checkpoints, and those that killed attempts left half written."""
        committed = self.committed(stage)
        kept = {checkpoint.name for checkpoint in committed if checkpoint.kept}
        for checkpoint in committed[-KEEP_LAST:]:
            best = next((index for index, other in enumerate(committed) if other.name == checkpoint.best), 0)
            # if the best is damaged, the run resumes from the one before it, which needs its own best
            needed = committed[max(0, best - 1) : best + 1]
            kept |= {checkpoint.name} | {name for other in needed for name in (other.name, other.best)}
        self.attempt.ensure_current()
        for name in self.folder.names():
            folder = self.folder / name
            if not name.startswith(f"{stage}-") or name in kept or name.endswith(".json") or folder.exists(DAMAGED):
                continue
            if token_of(name) > self.attempt.token:  # of a newer attempt
                continue
            folder.delete(MANIFEST)  # first: what is half deleted is no checkpoint
            self.folder.delete(name)

    def usable(self, stage: str, warn: Callable[[str], None]) -> list[Checkpoint]:
        """Returns the stage's checkpoints up to the newest that is intact and whose best one is intact.

        A run that resumes from the last of them ends as it would have. Damaged checkpoints are quarantined, with a
        warning that names each.
        """
        checkpoints = self.committed(stage)
        unreadable = set(self._manifests(stage)) - {checkpoint.name for checkpoint in checkpoints}
        damaged = dict.fromkeys(sorted(unreadable), f"its {MANIFEST} cannot be read")
        while checkpoints:
            needed = dict.fromkeys([checkpoints[-1].name, checkpoints[-1].best])
            broken = {name: damage for name in needed if name and (damage := self._damage(name))}
            damaged |= broken
            if not broken:
                break
            checkpoints.pop()
        for name, damage in damaged.items():
            if self._quarantine(name, damage):
                warn(f"checkpoint {self.folder}/{name} is damaged ({damage}) and quarantined; an older one is used")
        return checkpoints

    def is_intact(self, finished: Finished, warn: Callable[[str], None]) -> bool:
        """True if the best checkpoint of a finished stage is intact; otherwise it is quarantined, with a warning."""
        damage = self._damage(finished.best)
        if damage:
            self._quarantine(finished.best, damage)
            warn(
                f"checkpoint {self.folder}/{finished.best} is damaged ({damage}) and quarantined; its stage resumes "
                "from an older one"
            )
        return not damage

    def load(
        self,
        checkpoint: Checkpoint,
        model: nn.Module,
        optimizer: optim.Optimizer | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        """Load what a stage hands on into a model, strictly; given its optimizer too, load the state of training.

        Args:
            average: of the model's trained weights, where the stage has one.

        Raises:
            ValueError: a file is damaged, or its tensors do not fit the model; the message names them.
        """
        origin = f"checkpoint {self.folder}/{checkpoint.name}"
        weights = self.weights(checkpoint)
        if optimizer is None:
            fill(model, weights, origin)
            return
        others = self._tensors(checkpoint, TRAINING) if self._has(checkpoint, TRAINING) else {}
        averages = {name.removeprefix(AVERAGE): x for name, x in others.items() if name.startswith(AVERAGE)}
        training = {name: x for name, x in others.items() if not name.startswith(AVERAGE)}
        if average is not None:
            known = weights | averages
            average.load({name: known[name] for name in average.names if name in known}, origin)
        replaced = {plain_name(name) for name in training}
        fill(model, {name: x for name, x in weights.items() if name not in replaced} | training, origin)
        _fill_optimizer(optimizer, self._tensors(checkpoint, OPTIMIZER))

    def weights(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """Returns the model weights of a checkpoint, by name.

        Raises:
            ValueError: the file is damaged.
        """
        return self._tensors(checkpoint, MODEL)

    def get(self, name: str) -> Checkpoint:
        """Returns the committed checkpoint of a name.

        Raises:
            ValueError: there is none, or its manifest is damaged.
        """
        if (checkpoint := self._read(name)) is None:
            raise ValueError(f"{self.folder}/{name} is no checkpoint, or its {MANIFEST} is damaged")
        return checkpoint

    def _manifests(self, stage: str) -> list[str]:
        """Returns the names of the stage's accepted checkpoints."""
        names = (name for name in self.folder.names() if name.startswith(f"{stage}-") and self.attempt.accepts(name))
        return [name for name in names if (self.folder / name).exists(MANIFEST)]

    def _read(self, name: str) -> Checkpoint | None:
        """Returns a checkpoint as its manifest describes it; None if that is missing or damaged.

        Raises:
            OtherFormat: the checkpoint has another format.
        """
        try:
            manifest = self._manifest(name)
        except (Damaged, FileNotFoundError):
            return None
        fields = {key: manifest[key] for key in ("stage", "done", "best", "metrics", "skipped", "saved_at")}
        # an earlier version validated at the ends of epochs alone, and wrote none of these
        fields |= {"validated": not manifest["step"]}
        fields |= {key: manifest[key] for key in ("validated", "stale", "kept") if key in manifest}
        return Checkpoint(name=name, cursor=Cursor(manifest["epoch"], manifest["step"]), **fields)

    def _manifest(self, name: str) -> dict[str, Any]:
        """Returns the manifest of a checkpoint.

        Raises:
            Damaged, FileNotFoundError: it cannot be read.
            OtherFormat: the checkpoint has another format, or lacks what this version writes.
        """
        where = f"checkpoint {self.folder}/{name}"
        try:
            manifest = (self.folder / name).read_sealed(
                MANIFEST, repair="rerun the same command to resume from an older one", version=Version("format", FORMAT)
            )
        except OtherVersion as other:
            raise OtherFormat(where, _describe_format(other), other.written_by) from None
        if missing := [key for key in FIELDS if key not in manifest]:
            raise OtherFormat(where, f"no {', '.join(missing)}", str(manifest.get("groundray", "")))
        return manifest

    def _record(self, name: str) -> dict[str, Any]:
        """Returns the record of a finished stage.

        Raises:
            Damaged, FileNotFoundError: it cannot be read.
            OtherFormat: it has another format.
        """
        try:
            record = self.folder.read_sealed(name, version=Version("format", FORMAT))
        except OtherVersion as other:
            if other.number is not None:
                raise OtherFormat(f"{self.folder}/{name}", _describe_format(other), other.written_by) from None
            record = self.folder.read_sealed(name)  # written before these records had a format
        if missing := [key for key in ("metrics", "best") if key not in record]:
            raise OtherFormat(f"{self.folder}/{name}", f"no {', '.join(missing)}")
        return record

    def _has(self, checkpoint: Checkpoint, file: str) -> bool:
        return file in self._manifest(checkpoint.name)["files"]

    def _tensors(self, checkpoint: Checkpoint, file: str) -> dict[str, Tensor]:
        folder = self.folder / checkpoint.name
        expected = FileSeal.parse(self._manifest(checkpoint.name)["files"][file])
        content = folder.read_bytes(file)
        if damage := expected.compare(FileSeal.of(content)):
            raise Damaged(f"{folder}/{file}", damage, "rerun the same command to resume from an older checkpoint")
        return safetensors.torch.load(content)

    def _damage(self, name: str) -> str | None:
        """Returns what is wrong with a checkpoint; None if it is intact."""
        folder = self.folder / name
        if not folder.exists(MANIFEST):
            return f"it has no {MANIFEST}"
        if self._read(name) is None:
            return f"its {MANIFEST} cannot be read"
        for file, expected in self._manifest(name)["files"].items():
            try:
                folder.verify(file, FileSeal.parse(expected))
            except Damaged as error:
                return f"{file}: {error.reason}"
        return None

    def _quarantine(self, name: str, damage: str) -> bool:
        """Make a damaged checkpoint invisible but leave its files; False if it was none already."""
        folder = self.folder / name
        if not folder.exists(MANIFEST):
            return False
        folder.write_json(DAMAGED, {"damage": damage, "found": time.time()})
        folder.delete(MANIFEST)
        return True


def _describe_format(other: OtherVersion) -> str:
    return "no format" if other.number is None else f"format {other.number}"


def take_snapshot(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: optim.Optimizer,
    lines: tuple[str, ...],
    average: WeightAverage | None = None,
) -> Snapshot:
    """Copy a model and its optimizer for a checkpoint that is written while training continues.

    Frozen parameters are not copied: they change only after the stage is over, when all checkpoints are written.

    Args:
        average: of the model's trained weights, which the stage hands on in their place.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.detach().contiguous() if name in frozen else _copy(x) for name, x in tensors.items()}

    with averaged(average):
        own, handed_on = model.state_dict(), merged_weights(model)
    adapters = {name: tensor for name, tensor in own.items() if name not in handed_on}  # and what they adapt
    trained = average.trained() if average else {}
    averages = {f"{AVERAGE}{name}": adapters[name] for name in trained if name in adapters}
    training = copies({**adapters, **trained, **averages})
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    moments = {
        f"{number}/{name}": _copy(tensor) for number, tensors in state.items() for name, tensor in tensors.items()
    }
    others = {TRAINING: training} if training else {}
    return Snapshot(checkpoint, {MODEL: copies(handed_on), OPTIMIZER: moments, **others}, lines)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _fill_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load a checkpoint's tensors, named `parameter number/name`, into an optimizer."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
