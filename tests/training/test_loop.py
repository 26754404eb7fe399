"""The optimizer and the learning rate."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallWorld
from torch import optim

from groundray import config
from groundray.model.build import build_head, build_language, build_model, build_visual
from groundray.model.freezing import freeze
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.training.loop import make_optimizer, set_learning_rate


@pytest.mark.parametrize("language_layers", ["all", "1", "0"])
def test_language_stream_has_its_own_learning_rate(world: SmallWorld, language_layers: str) -> None:
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
    model = build_model(settings.model)
    model.heads["grounding"] = build_head("grounding", settings.model, model, {})
    freeze(model, "grounding", stage.trains)
    optimizer = make_optimizer(model, stage.optimizer)
    assert set_learning_rate(optimizer, stage.optimizer, epoch=3, step=100) == 0.005

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.stack([parameter.sum() for parameter in model.parameters() if parameter.requires_grad]).sum().backward()
    optimizer.step()
    # Adam's first step is the learning rate itself, whatever the gradient
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).abs().max().item()
        expected = (0.0005 if name.startswith("language.") else 0.005) if parameter.requires_grad else 0.0
        assert moved == pytest.approx(expected, rel=1e-2), name


def test_learning_rate_warms_up() -> None:
    settings = config.Optimizer(lr=0.1, warmup=4, halve_every=1)
    optimizer = make_optimizer_of(settings)
    assert [set_learning_rate(optimizer, settings, 0, step) for step in range(6)] == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]
    )
    assert set_learning_rate(optimizer, settings, 1, 6) == pytest.approx(0.05)


def test_learning_rate_halves_at_epochs_counted_from_0_or_1() -> None:
    rates = {}
    for first in (0, 1):
        settings = config.Optimizer(lr=0.8, halve_every=3, first_epoch=first)
        optimizer = make_optimizer_of(settings)
        rates[first] = [set_learning_rate(optimizer, settings, epoch, 0) for epoch in range(7)]
    assert rates[0] == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]
    assert rates[1] == [0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]


def test_sgd_has_momentum_and_weight_decay() -> None:
    """Two steps by hand: v = 0.9 v + (g + wd p), p = p - lr v, of a parameter 1 with gradient 1."""
    settings = config.Optimizer(kind="sgd", lr=0.1, momentum=0.9, weight_decay=0.5, halve_every=9)
    optimizer = make_optimizer_of(settings)
    parameter = next(p for group in optimizer.param_groups for p in group["params"])
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(2):
        set_learning_rate(optimizer, settings, 0, 0)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    # v1 = 1.5, p1 = 0.85; v2 = 1.35 + 1.425, p2 = 0.85 - 0.2775
    assert torch.allclose(parameter, torch.tensor(0.5725))


def make_optimizer_of(settings: config.Optimizer) -> optim.Optimizer:
    """Returns the optimizer of a model whose only trained part is the grounding heads."""
    with torch.device("meta"):
        language = build_language(config.Language(name="bert-base-uncased"), pretrained=False)
        model = GroundedModel(build_visual(config.Model(), language.width, pretrained=False), language)
    model.heads["grounding"] = GroundingHeads(2)
    freeze(model, "grounding")
    return make_optimizer(model, settings)
