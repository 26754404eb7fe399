"""Gradient checkpointing: the same bits, dropout included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import STAGES, SmallWorld

from groundray import config
from groundray.model.build import build_model
from groundray.training import preflight, progression
from groundray.training.gradient_checkpointing import checkpoint_gradients
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs, of one setting


def test_weights_are_the_same_to_the_bit(world: SmallWorld, tmp_path: Path) -> None:
    """All stages, with dropout, and with adapters in one of them."""
    found = []
    for name, words in (("plain", ()), ("checkpointed", ("--scaling.gradient_checkpointing=true",))):
        settings = world.settings(
            f"--run.storage={tmp_path}", f"--run.name={name}", *(f"--{stage}.epochs=1" for stage in STAGES.split(",")),
            "--grounding.dropout=0.3", "--relational.dropout=0.3", "--relational.trains.lora.dropout=0.2", *words,
            stages=STAGES,
        )  # fmt: skip
        torch.set_num_threads(1)
        progression.run_stages(preflight.check(config.load("demo", settings)), InProcess(lambda _: None))
        folder = tmp_path / name / "model"
        found.append({file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.safetensors")})
    assert len(found[0]) > 8
    assert found[0] == found[1]


@pytest.mark.parametrize("training", [True, False])
def test_activations_of_trained_parts_are_not_kept(world: SmallWorld, training: bool) -> None:
    """A part in eval mode has no graph to keep."""
    kept: dict[bool, int] = {}
    images = torch.zeros(2, 160, 7, 7)
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build_model(config.load("demo", world.settings()).model).train(training)
        if checkpointed:
            checkpoint_gradients(model)
        tokens = torch.randint(5, 20, (3, 8))
        bytes = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal bytes
            bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            (model.visual.attend(images).sum() + model.language(tokens, tokens > 0).sum()).backward()
        kept[checkpointed] = bytes
    assert (kept[True] < kept[False] / 3) == training
