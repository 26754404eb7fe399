"""Checkpoints: safetensors and JSON in a folder a checkpoint, written by rank 0 and read by every rank.

    RUN/checkpoints/grounding-00003-000012-a0002-3f9a81c0/   stage, cursor (epoch, step) where to go on, attempt
        model.safetensors  optimizer.safetensors
        manifest.json                                        comes last: a folder without it is not a checkpoint
    RUN/checkpoints/grounding-done-a0002-3f9a81c0.json       a finished stage, which is not run again
    RUN/history/grounding-00003-000012-a0002-3f9a81c0.jsonl  the steps since the checkpoint before it, see history.py

The manifest holds the size and SHA-256 of each file, the cursor, and which checkpoint is the stage's best so far. The
last two checkpoints of a stage are kept, its best one, and the one before that. Which of them count is fixed by
attempt, see attempts.py. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
from torch import Tensor, nn, optim

from groundray.data.plan import Cursor
from groundray.model.weights import fill
from groundray.storage.folder import Folder
from groundray.training import history
from groundray.training.attempts import Attempt, latest, token_of
from groundray.training.layout import CHECKPOINTS

FORMAT = 3
MANIFEST, DAMAGED = "manifest.json", "damaged.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
KEPT = 2  # checkpoints of a stage, besides its best


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        name: its folder in the store.
        stage: the stage that it belongs to.
        cursor: the next global batch; at the end of an epoch whose validation is still to come, one past its last.
        done: steps of the stage, counted from its first.
        best: the name of the stage's best checkpoint so far, perhaps this one; None before the first validation.
        metrics: the validation metrics of the best one.
        skipped: steps so far that were left out, as their loss was not finite.
        saved_at: when its state was that of the model, in seconds since 1970.
    """

    name: str
    stage: str
    cursor: Cursor
    done: int
    best: str | None
    metrics: dict[str, float]
    skipped: int = 0
    saved_at: float = 0.0


@dataclass(frozen=True)
class Finished:
    """A finished stage: the metrics that it ended with, and its best checkpoint, whose weights are its result."""

    name: str
    metrics: dict[str, float]
    best: str


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint on its way to the store: copies of all that it holds.

    Attributes:
        history: lines about the steps since the checkpoint before it.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Mapping[str, Tensor]]
    history: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of a run that count for an attempt at it."""

    attempt: Attempt
    folder: Folder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.attempt.run / CHECKPOINTS)

    @staticmethod
    def at(run: Folder) -> CheckpointStore:
        """The store of the run in a folder, as its latest attempt has it."""
        return CheckpointStore(latest(run))

    def committed(self, stage: str) -> list[Checkpoint]:
        """The stage's checkpoints, oldest first; one whose manifest cannot be read is none."""
        found = [self._read(name) for name in self._manifests(stage)]
        return sorted((one for one in found if one), key=lambda checkpoint: checkpoint.cursor)

    def last(self, stage: str) -> Checkpoint | None:
        """The stage's newest checkpoint, for whoever looks at a run; an attempt goes on from a `usable` one."""
        return next(reversed(self.committed(stage)), None)

    def finished(self, stage: str, warn: Callable[[str], None] = lambda _: None) -> Finished | None:
        """How a finished stage ended; None while it is not finished, or where the note of it is damaged."""
        for name in self.folder.names():
            if name.startswith(f"{stage}-done-") and self.attempt.accepts(name):
                try:
                    found = self.folder.read_sealed(name)
                except ValueError as error:
                    warn(f"{error}; the stage goes on from its last checkpoint")
                    continue
                return Finished(name, found["metrics"], found["best"])
        return None

    def finish(self, stage: str, metrics: Mapping[str, float], best: str, lines: tuple[str, ...] = ()) -> None:
        """Note that a stage is finished."""
        self.attempt.ensure_current()
        name = self.attempt.name(f"{stage}-done")
        history.write(self.attempt.run, name, lines)
        self.folder.write_sealed(f"{name}.json", {"stage": stage, "metrics": dict(metrics), "best": best})

    def name(self, stage: str, cursor: Cursor) -> str:
        """Of this attempt's checkpoint at a cursor."""
        return self.attempt.name(f"{stage}-{cursor.epoch:05d}-{cursor.step:06d}")

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint whole or not at all, then delete the ones that it makes superfluous.

        Raises:
            Superseded: a newer attempt has begun; nothing was committed.
            OSError: the storage cannot be written; the checkpoints before are as they were.
        """
        checkpoint = snapshot.checkpoint
        self.attempt.ensure_current()
        try:
            self._write(snapshot)
        except OSError as error:
            raise OSError(
                *([error.errno] if error.errno else []),  # an object store has none
                f"checkpoint {self.folder}/{checkpoint.name} cannot be written: {error}; those before it are whole: "
                "make room there, or see to the storage",
            ) from error
        self._tidy(checkpoint.stage)

    def _write(self, snapshot: Snapshot) -> None:
        checkpoint, files = snapshot.checkpoint, {}
        folder = (self.folder / checkpoint.name).make()
        for file, tensors in snapshot.tensors.items():
            content = safetensors.torch.save(dict(tensors))
            folder.write_bytes(file, content)
            files[file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        history.write(self.attempt.run, checkpoint.name, snapshot.history)
        self.attempt.ensure_current()
        told = {key: value for key, value in vars(checkpoint).items() if key not in ("name", "cursor")}
        cursor = {"epoch": checkpoint.cursor.epoch, "step": checkpoint.cursor.step}
        folder.write_sealed(MANIFEST, {"format": FORMAT, **told, **cursor, "files": files})

    def _tidy(self, stage: str) -> None:
        """Delete what is superfluous of a stage: older checkpoints, and what killed attempts left half written."""
        committed = self.committed(stage)
        kept = set()
        for one in committed[-KEPT:]:
            until = next((place for place, other in enumerate(committed) if other.name == one.best), 0)
            # the one before the best is where that would be made again, if it were damaged; with its own best
            around = committed[max(0, until - 1) : until + 1]
            kept |= {one.name} | {name for other in around for name in (other.name, other.best)}
        self.attempt.ensure_current()
        for name in self.folder.names():
            folder = self.folder / name
            if not name.startswith(f"{stage}-") or name in kept or name.endswith(".json") or folder.exists(DAMAGED):
                continue
            if token_of(name) > self.attempt.token:  # of an attempt that has taken over since
                continue
            folder.delete(MANIFEST)  # first, so that half a checkpoint is none
            self.folder.delete(name)

    def usable(self, stage: str, warn: Callable[[str], None]) -> list[Checkpoint]:
        """The stage's checkpoints up to the newest that is whole, and whose best one is whole: from there, the run ends
        as it would have. Those that are damaged are set aside, with a warning that names each."""
        found = self.committed(stage)
        unreadable = set(self._manifests(stage)) - {one.name for one in found}
        damaged = dict.fromkeys(sorted(unreadable), f"its {MANIFEST} cannot be read")
        while found:
            needed = dict.fromkeys([found[-1].name, found[-1].best])
            broken = {name: why for name in needed if name and (why := self._damage(name))}
            damaged |= broken
            if not broken:
                break
            found.pop()
        for name, why in damaged.items():
            if self._set_aside(name, why):
                warn(f"checkpoint {self.folder}/{name} is damaged ({why}) and set aside; an older one is used")
        return found

    def whole(self, done: Finished, warn: Callable[[str], None]) -> bool:
        """Whether the best checkpoint of a finished stage is whole; a warning says so where it is not."""
        why = self._damage(done.best)
        if why:
            self._set_aside(done.best, why)
            warn(
                f"checkpoint {self.folder}/{done.best} is damaged ({why}) and set aside; its stage goes on from before"
            )
        return not why

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
        """Fill a model (strictly) and its optimiser with a checkpoint's state.

        Raises:
            ValueError: a file is damaged, or its tensors are not those of the model; the message names them.
        """
        fill(model, self.weights(checkpoint), f"checkpoint {self.folder}/{checkpoint.name}")
        if optimizer is not None:
            _fill_optimizer(optimizer, self._tensors(checkpoint, OPTIMIZER))

    def weights(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The weights of a checkpoint's model, by name.

        Raises:
            ValueError: the file is damaged.
        """
        return self._tensors(checkpoint, MODEL)

    def named(self, name: str) -> Checkpoint:
        """The committed checkpoint of a name.

        Raises:
            ValueError: there is none, or its manifest is damaged.
        """
        if (found := self._read(name)) is None:
            raise ValueError(f"{self.folder}/{name} is no checkpoint, or its {MANIFEST} is damaged")
        return found

    def _manifests(self, stage: str) -> list[str]:
        """The names of the stage's checkpoints that count."""
        named = (name for name in self.folder.names() if name.startswith(f"{stage}-") and self.attempt.accepts(name))
        return [name for name in named if (self.folder / name).exists(MANIFEST)]

    def _read(self, name: str) -> Checkpoint | None:
        """What the manifest says of a checkpoint; None where it is damaged."""
        try:
            told = (self.folder / name).read_sealed(MANIFEST)
            kept = {key: told[key] for key in ("stage", "done", "best", "metrics", "skipped", "saved_at")}
            return Checkpoint(name=name, cursor=Cursor(told["epoch"], told["step"]), **kept)
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            return None

    def _tensors(self, checkpoint: Checkpoint, file: str) -> dict[str, Tensor]:
        folder = self.folder / checkpoint.name
        expected = folder.read_sealed(MANIFEST)["files"][file]
        content = folder.read_bytes(file)
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise ValueError(
                f"{folder}/{file} is damaged: its checksum is not the one in {MANIFEST}; "
                "run again to go on from an older checkpoint"
            )
        return safetensors.torch.load(content)

    def _damage(self, name: str) -> str | None:
        """What is wrong with a checkpoint; None where it is whole."""
        folder = self.folder / name
        if not folder.exists(MANIFEST):
            return f"it has no {MANIFEST}"
        if self._read(name) is None:
            return f"its {MANIFEST} cannot be read"
        for file, expected in folder.read_sealed(MANIFEST)["files"].items():
            if not folder.exists(file):
                return f"it has no {file}"
            content = folder.read_bytes(file)
            if len(content) != expected["bytes"]:
                return f"{file} has {len(content)} bytes of {expected['bytes']}"
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                return f"the checksum of {file} is not the one in {MANIFEST}"
        return None

    def _set_aside(self, name: str, why: str) -> bool:
        """Make a damaged checkpoint none, its files left for whoever wants to look; False where it was none before."""
        folder = self.folder / name
        if not folder.exists(MANIFEST):
            return False
        folder.write_json(DAMAGED, {"damage": why, "found": time.time()})
        folder.delete(MANIFEST)
        return True


def snapshot(checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer, lines: tuple[str, ...]) -> Snapshot:
    """Copies of a model and its optimiser, for a checkpoint that is written while they train on.

    Frozen parameters are not copied: nothing changes them before the stage is over, and all is written then.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    weights = {
        name: tensor.detach().contiguous() if name in frozen else _copy(tensor)
        for name, tensor in model.state_dict().items()
    }
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    of_optimizer = {
        f"{number}/{name}": _copy(tensor) for number, tensors in state.items() for name, tensor in tensors.items()
    }
    return Snapshot(checkpoint, {MODEL: weights, OPTIMIZER: of_optimizer}, lines)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _fill_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser a checkpoint's tensors, named `number/name` by the order of its parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
