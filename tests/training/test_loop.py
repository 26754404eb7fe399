"""What the loop does between the stages' own doings."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallWorld

from groundray import config
from groundray.model.freezing import freeze
from groundray.model.grounded import build
from groundray.training.loop import make_optimizer, set_learning_rate


@pytest.mark.parametrize("language_layers", ["all", "1", "0"])
def test_the_language_stream_learns_at_its_own_rate(world: SmallWorld, language_layers: str) -> None:
    settings = config.load(
        "demo",
        world.settings(
            "--grounding.optimizer.lr=0.01",
            "--grounding.optimizer.language_lr=0.001",
            "--grounding.optimizer.halve_every=2",
            f"--grounding.trains.language_layers={language_layers}",
        ),
    )
    stage = settings.stage("grounding")
    torch.manual_seed(0)
    model = build(settings.model)
    freeze(model, stage.trains)
    optimizer = make_optimizer(model, stage.optimizer)
    assert set_learning_rate(optimizer, stage.optimizer, epoch=3) == 0.005

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.stack([parameter.sum() for parameter in model.parameters() if parameter.requires_grad]).sum().backward()
    optimizer.step()
    # Adam's first step is the learning rate itself, whatever the gradient
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).abs().max().item()
        expected = (0.0005 if name.startswith("language.") else 0.005) if parameter.requires_grad else 0.0
        assert moved == pytest.approx(expected, rel=1e-2), name
