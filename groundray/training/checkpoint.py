"""Checkpoints: safetensors and JSON in a folder a checkpoint, written by rank 0 and read by every rank.

    RUN/checkpoints/grounding-00003-000000/     stage, and the cursor (epoch, step) at which to go on
        model.safetensors  optimizer.safetensors
        manifest.json                           comes last: a folder without it is not a checkpoint
    RUN/checkpoints/grounding.json              the metrics of a finished stage, which is not run again

The manifest holds the size and SHA-256 of each file, the cursor, and the stage's best metrics so far. The last
checkpoint and the best one of each stage are kept. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from torch import Tensor, nn, optim

from groundray.data.plan import Cursor
from groundray.model.weights import fill
from groundray.storage import Folder

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        name: its folder in the store.
        stage: the stage that it belongs to.
        cursor: the next global batch.
        metrics: the validation metrics at its end of an epoch; empty in the middle of one.
        best: whether these metrics were the stage's best when it was written.
    """

    name: str
    stage: str
    cursor: Cursor
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Store:
    """The checkpoints of a run, in `folder`."""

    folder: Folder

    def committed(self, stage: str) -> list[Checkpoint]:
        """The stage's checkpoints, oldest first."""
        found = []
        for name in self.folder.names():
            if name.startswith(f"{stage}-") and (self.folder / name).exists(MANIFEST):
                manifest = (self.folder / name).read_json(MANIFEST)
                cursor = Cursor(manifest["epoch"], manifest["step"])
                found.append(Checkpoint(name, stage, cursor, manifest["metrics"], manifest["best"]))
        return sorted(found, key=lambda checkpoint: checkpoint.cursor)

    def last(self, stage: str) -> Checkpoint | None:
        """Where the stage goes on."""
        return next(reversed(self.committed(stage)), None)

    def best(self, stage: str) -> Checkpoint | None:
        """What the next stage starts from: of the checkpoints that were the best when written, the newest."""
        return next((found for found in reversed(self.committed(stage)) if found.best), None)

    def finished(self, stage: str) -> dict[str, float] | None:
        """The metrics that a finished stage ended with; None while it is not finished."""
        name = f"{stage}.json"
        return self.folder.read_json(name)["metrics"] if self.folder.exists(name) else None

    def finish(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Note that a stage is finished."""
        self.folder.write_json(f"{stage}.json", {"stage": stage, "metrics": dict(metrics)})

    def save(
        self,
        stage: str,
        cursor: Cursor,
        model: nn.Module,
        optimizer: optim.Optimizer,
        metrics: Mapping[str, float],
        best: bool,
    ) -> None:
        """Write a checkpoint whole or not at all, then delete the ones that it makes superfluous."""
        name = f"{stage}-{cursor.epoch:05d}-{cursor.step:06d}"
        folder = (self.folder / name).make()
        folder.delete(MANIFEST)
        files = {
            "model.safetensors": safetensors.torch.save(_state(model)),
            "optimizer.safetensors": safetensors.torch.save(_optimizer_tensors(optimizer)),
        }
        for file, content in files.items():
            folder.write_bytes(file, content)
        folder.write_json(
            MANIFEST,
            {
                "format": FORMAT,
                "stage": stage,
                "epoch": cursor.epoch,
                "step": cursor.step,
                "metrics": dict(metrics),
                "best": best,
                "files": {
                    file: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                    for file, content in files.items()
                },
            },
        )
        kept = {checkpoint.name for checkpoint in (self.last(stage), self.best(stage)) if checkpoint}
        for checkpoint in self.committed(stage):
            if checkpoint.name not in kept:
                (self.folder / checkpoint.name).delete(MANIFEST)  # first, so that half a checkpoint is none
                self.folder.delete(checkpoint.name)

    def load(self, checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer | None = None) -> None:
        """Fill a model (strictly) and its optimiser with a checkpoint's state.

        Raises:
            ValueError: a file is damaged, or its tensors are not those of the model; the message names them.
        """
        fill(model, self.weights(checkpoint), f"checkpoint {self.folder}/{checkpoint.name}")
        if optimizer is not None:
            _fill_optimizer(optimizer, self._tensors(checkpoint, "optimizer.safetensors"))

    def weights(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The weights of a checkpoint's model, by name.

        Raises:
            ValueError: the file is damaged.
        """
        return self._tensors(checkpoint, "model.safetensors")

    def _tensors(self, checkpoint: Checkpoint, file: str) -> dict[str, Tensor]:
        folder = self.folder / checkpoint.name
        expected = folder.read_json(MANIFEST)["files"][file]
        content = folder.read_bytes(file)
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise ValueError(
                f"{folder}/{file} is damaged: its checksum is not the one in {MANIFEST}; "
                f"delete the folder {checkpoint.name} and run again to go on from an older checkpoint"
            )
        return safetensors.torch.load(content)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _optimizer_tensors(optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors as `number of the parameter / name`, in the order of its parameters."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": tensor.detach().contiguous()
        for number, tensors in state.items()
        for name, tensor in tensors.items()
    }


def _fill_optimizer(optimizer: optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
