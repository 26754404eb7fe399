"""The optimizer, its groups of parameters, and the learning rates at every step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SmallWorld
from torch import nn, optim
from torch.optim import lr_scheduler as scheduler

from groundray import config
from groundray.model.build import build_head, build_language, build_model, build_visual
from groundray.model.freezing import freeze
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.model.layer_order import layers_above_language
from groundray.training import preflight
from groundray.training.optimizer import make_optimizer, set_learning_rates


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
    rates = {"learning_rate": 0.005} | ({"learning_rate/language": 0.0005} if language_layers != "0" else {})
    assert set_learning_rates(optimizer, stage, step=30, steps_per_epoch=10) == rates

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.stack([parameter.sum() for parameter in model.parameters() if parameter.requires_grad]).sum().backward()
    optimizer.step()
    # Adam's first step is the learning rate itself, whatever the gradient
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).abs().max().item()
        expected = (0.0005 if name.startswith("language.") else 0.005) if parameter.requires_grad else 0.0
        assert moved == pytest.approx(expected, rel=1e-2), name


STEPS = 7  # of an epoch


def stage_of(epochs: int, **optimizer: Any) -> config.Stage:
    return config.Stage(train="", val="", batch_size=1, epochs=epochs, optimizer=config.Optimizer(lr=0.8, **optimizer))


def rates_of(stage: config.Stage) -> list[float]:
    """Returns the learning rate of every step of a stage."""
    optimizer = make_optimizer_of(stage.optimizer)
    return [set_learning_rates(optimizer, stage, step, STEPS)["learning_rate"] for step in range(stage.epochs * STEPS)]


def test_learning_rate_warms_up() -> None:
    rates = rates_of(stage_of(2, warmup=4, halve_every=1))
    assert rates == pytest.approx([0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.8, *[0.4] * 7])


def test_learning_rate_halves_at_epochs_counted_from_0_or_1() -> None:
    rates = {first: rates_of(stage_of(7, halve_every=3, first_epoch=first))[::STEPS] for first in (0, 1)}
    assert rates[0] == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]
    assert rates[1] == [0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2]


@pytest.mark.parametrize("warmup", [0, 1, 10])
@pytest.mark.parametrize(
    ("settings", "after"),
    [
        (
            {"schedule": "cosine", "final_fraction": 0.1},
            lambda optimizer, steps: scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=0.08),
        ),
        ({"schedule": "cosine"}, lambda optimizer, steps: scheduler.CosineAnnealingLR(optimizer, T_max=steps)),
        (
            {"schedule": "linear", "final_fraction": 0.25},
            lambda optimizer, steps: scheduler.LinearLR(optimizer, 1.0, 0.25, total_iters=steps),
        ),
        ({"schedule": "constant"}, lambda optimizer, steps: scheduler.ConstantLR(optimizer, 1.0)),
    ],
)
def test_learning_rate_is_that_of_torchs_schedulers_at_every_step(
    settings: dict[str, Any], after: Callable[[optim.Optimizer, int], scheduler.LRScheduler], warmup: int
) -> None:
    steps = 5 * STEPS
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.8)
    falling = after(optimizer, steps - warmup)
    if warmup:
        optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.8)
        rising = scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, total_iters=warmup)
        falling = scheduler.SequentialLR(optimizer, [rising, after(optimizer, steps - warmup)], [warmup])
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        falling.step()
    assert rates_of(stage_of(5, warmup=warmup, **settings)) == pytest.approx(expected, rel=1e-9)


def test_learning_rate_steps_down_as_torchs_at_milestones_within_epochs_too() -> None:
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.8)
    torchs = scheduler.MultiStepLR(optimizer, [4, 14], gamma=0.5)  # 4 is the first step after half of 7
    expected = []
    for _ in range(5 * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    assert rates_of(stage_of(5, schedule="step", milestones=(0.5, 2), factor=0.5)) == pytest.approx(expected)


def test_parts_have_learning_rates_of_their_own() -> None:
    stage = stage_of(2, trunk_lr=0.1, head_lr=0.2, language_lr=0.4, schedule="linear", warmup=1)
    with torch.device("meta"):
        language = build_language(config.Language(name="bert-base-uncased"), pretrained=False)
        model = GroundedModel(build_visual(config.Model(), language.width, pretrained=False), language)
    model.heads["grounding"] = GroundingHeads(2)
    freeze(model, "grounding", config.Trained(trunk=True))
    optimizer = make_optimizer(model, stage.optimizer)
    assert set_learning_rates(optimizer, stage, 0, STEPS) == pytest.approx(
        {
            "learning_rate": 0.4,
            "learning_rate/trunk": 0.05,
            "learning_rate/head": 0.1,
            "learning_rate/language": 0.2,
        }
    )
    parts = {group["part"]: group for group in optimizer.param_groups}
    assert {part: group["lr"] for part, group in parts.items()} == pytest.approx(
        {"trunk": 0.05, "visual": 0.4, "head": 0.1, "language": 0.2}
    )
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    visual = [*model.visual.parameters(), *model.heads.parameters()]
    trained = [p for p in (*visual, *model.language.parameters()) if p.requires_grad]
    assert all(one is other for one, other in zip(grouped, trained, strict=True))  # checkpoints number them so


def test_adamw_decays_matrices_only_and_apart_from_the_gradient() -> None:
    """Two steps by hand (Loshchilov and Hutter 2019): p = (1 - lr wd) p - lr m / (sqrt(v) + eps)."""
    settings = config.Optimizer(kind="adamw", lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    model = model_of_heads()
    head = model.heads["grounding"]
    head.temperature = nn.Parameter(torch.tensor(1.0))
    optimizer = make_optimizer(model, settings)
    gradients = (torch.tensor(2.0), torch.tensor(-1.0))
    parameters = list(head.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(1.0)
    for gradient in gradients:
        for parameter in parameters:
            parameter.grad = gradient.expand_as(parameter).clone()
        optimizer.step()
    for parameter in parameters:
        p = torch.tensor(1.0)
        m = v = torch.tensor(0.0)
        for step, gradient in enumerate(gradients, start=1):
            m, v = 0.5 * m + 0.5 * gradient, 0.75 * v + 0.25 * gradient**2
            decay = 0.5 if parameter.ndim > 1 else 0.0
            p = (1 - 0.1 * decay) * p - 0.1 * (m / (1 - 0.5**step)) / ((v / (1 - 0.75**step)).sqrt() + 1e-8)
        assert torch.allclose(parameter.detach(), p, rtol=1e-6)
    assert {parameter.ndim for parameter in parameters} == {0, 1, 2}


def test_each_layer_below_the_last_has_a_lower_rate(world: SmallWorld) -> None:
    """Rates by hand: two layers, and the embeddings below them."""
    settings = config.load("demo", world.settings())
    model = build_model(settings.model)
    model.heads["grounding"] = GroundingHeads(2)
    freeze(model, "grounding", config.Trained(language_layers="all", query_key=True))
    optimizer = make_optimizer(model, config.Optimizer(lr=1.0, language_lr=0.5, layer_decay=0.1))
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"bert.encoder.layer.1.": 0.5, "bert.encoder.layer.0.": 0.05, "bert.embeddings.": 0.005}
    for name, parameter in model.language.named_parameters():
        (rate,) = (rate for prefix, rate in expected.items() if name.startswith(prefix))
        assert rates[id(parameter)] == pytest.approx(rate), name
    assert all(rates[id(parameter)] == 1.0 for parameter in model.heads.parameters())
    assert {above for id_, above in layers_above_language(model).items() if id_ in rates} == {0, 1, 2}


# the layers above the parameters whose names begin so, by trunk; written out from the networks' definitions
ABOVE: dict[str, dict[str, int]] = {
    "timm/vit_tiny_patch16_224": {
        **{f"network.blocks.{n}.": 11 - n for n in range(12)},
        "network.norm.": 0,
        **dict.fromkeys(("network.cls_token", "network.pos_embed", "network.patch_embed."), 12),
    },
    "timm/resnet18": {
        **{f"network.layer{stage}.{block}.": 8 - 2 * stage + 1 - block for stage in (1, 2, 3, 4) for block in (0, 1)},
        **dict.fromkeys(("network.conv1.", "network.bn1."), 8),
    },
    "vgg16": {f"{n}.": above for above, n in enumerate((28, 26, 24, 21, 19, 17, 14, 12, 10, 7, 5, 2, 0))},
    "efficientnet_lite0": {
        **{f"network._blocks.{n}.": 15 - n for n in range(16)},
        **dict.fromkeys(("network._conv_head.", "network._bn1."), 0),
        **dict.fromkeys(("network._conv_stem.", "network._bn0."), 16),
    },
    "tiny": {"first.0.": 5, "first.1.": 4, "last.0.": 3, "last.1.": 2, "last.2.": 1, "last.3.": 0},
}


def with_trunk(name: str) -> GroundedModel:
    """Returns a model of a trunk that is trained with the rest of the visual stream, without memory."""
    settings = config.Model(trunk=config.Trunk(name=name, weights="none"))
    with torch.device("meta"):
        language = build_language(config.Language(name="bert-base-uncased"), pretrained=False)
        model = GroundedModel(build_visual(settings, language.width, pretrained=False), language)
    model.heads["grounding"] = GroundingHeads(2)
    freeze(model, "grounding", config.Trained(trunk=True, language_layers=1))
    return model


@pytest.mark.parametrize("name", ABOVE)
def test_each_layer_of_a_trunk_below_the_last_has_a_lower_rate(name: str) -> None:
    model = with_trunk(name)
    optimizer = make_optimizer(model, config.Optimizer(lr=0.25, trunk_lr=2.0, trunk_layer_decay=0.5))
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = model.visual.trunk.layers
    found = {n: rates[id(parameter)] for n, parameter in layers.named_parameters()}
    expected = {n: [2.0 * 0.5**above for prefix, above in ABOVE[name].items() if n.startswith(prefix)] for n in found}
    assert {n: [rate] for n, rate in found.items()} == expected
    in_trunk = {id(parameter) for parameter in layers.parameters()}
    assert {rate for parameter, rate in rates.items() if parameter not in in_trunk} == {0.25}
    assert set_learning_rates(optimizer, stage_of(1, trunk_lr=2.0), 0, STEPS)["learning_rate/trunk"] == 2.0


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224", "efficientnet_lite0", "vgg11"])
def test_rates_of_timms_trunks_are_those_of_timms_own_decay(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    model = with_trunk(f"timm/{name}")
    network: Any = model.visual.trunk.layers.network
    theirs: Any = param_groups_layer_decay(network, layer_decay=0.5)
    expected = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    optimizer = make_optimizer(model, config.Optimizer(lr=1.0, trunk_layer_decay=0.5))
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {key: rates[key] for key in expected} == expected
    assert len(set(expected.values())) > 5


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_l2_penalty_spares_scalars(kind: str) -> None:
    model = model_of_heads()
    model.heads["grounding"].temperature = nn.Parameter(torch.tensor(1.0))
    for group in make_optimizer(model, config.Optimizer(kind=kind, weight_decay=0.5)).param_groups:
        assert group["weight_decay"] == (0.0 if group["params"][0].ndim == 0 else 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("schedule=step",), r"milestones: expected at least one epoch with schedule step, .* got \[\] with step"),
        (("milestones=1",), r"milestones: expected .* got \[1.0\] with halve: set both, or neither"),
        (("schedule=step", "milestones=2,1"), r"milestones: expected ascending epochs, got \[2.0, 1.0\]"),
        (("schedule=step", "milestones=1,9"), r"milestones: expected epochs before the end of the stage's 2, got 9"),
        (("final_fraction=0.5",), "final_fraction: expected schedule cosine or linear with it, got halve"),
        (("layer_decay=0.9", "trains.language_layers=0"), "layer_decay: expected a stage that trains layers"),
        (("trunk_layer_decay=0.9", "trains.trunk=false"), "trunk_layer_decay: expected a stage that trains the trunk"),
        (("trains.lora.rank=2", "trains.language_layers=0"), "lora: expected layers of .* got language_layers 0"),
        (("trains.lora.rank=2", "trains.language_layers=3"), "trains.language_layers: expected at most 2, got 3"),
        (
            ("trains.lora.targets=query,q_lin",),
            r"grounding: trains.lora.targets: .* no linear map 'q_lin': give some of dense, key, query, value, or none",
        ),
        (("warmup=18",), r"grounding.optimizer.warmup: expected fewer than the stage's 18 steps, got 18"),
    ],
)
def test_what_cannot_be_trained_is_named_before_training(
    world: SmallWorld, words: tuple[str, ...], message: str
) -> None:
    named = [f"--grounding.{word if word.startswith('trains') else f'optimizer.{word}'}" for word in words]
    with pytest.raises(config.SettingsError, match=message):
        preflight.check(config.load("demo", world.settings(*named)))


def test_a_trunk_whose_layers_have_no_order_is_named_before_training(world: SmallWorld) -> None:
    words = world.settings("--grounding.trains.trunk=true", "--model.trunk.name=timm/poolformer_s12")
    preflight.check(config.load("demo", words))
    with pytest.raises(
        config.SettingsError,
        match=r"grounding\.optimizer\.trunk_layer_decay: expected a trunk whose layers have an order, got timm/pool",
    ):
        preflight.check(config.load("demo", [*words, "--grounding.optimizer.trunk_layer_decay=0.5"]))


def test_adapters_without_peft_are_refused_before_training(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(config.SettingsError, match=r"grounding: trains.lora needs .*pip install groundray\[models\]"):
        preflight.check(config.load("demo", world.settings("--grounding.trains.lora.rank=2")))


def test_the_dry_run_counts_adapters(world: SmallWorld) -> None:
    preview = preflight.preview(config.load("demo", world.settings("--grounding.trains.lora.rank=2")))
    assert not preview.problems
    assert preview.stages[0].trainable["language stream"] == 2 * 2 * (4 * 256 + 2 * 640)


def test_sgd_has_momentum_and_weight_decay() -> None:
    """Two steps by hand: v = 0.9 v + (g + wd p), p = p - lr v, of a parameter 1 with gradient 1."""
    settings = config.Optimizer(kind="sgd", lr=0.1, momentum=0.9, weight_decay=0.5, halve_every=9)
    optimizer = make_optimizer_of(settings)
    parameter = next(p for group in optimizer.param_groups for p in group["params"])
    with torch.no_grad():
        parameter.fill_(1.0)
    for _ in range(2):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    # v1 = 1.5, p1 = 0.85; v2 = 1.35 + 1.425, p2 = 0.85 - 0.2775
    assert torch.allclose(parameter, torch.tensor(0.5725))


def make_optimizer_of(settings: config.Optimizer) -> optim.Optimizer:
    return make_optimizer(model_of_heads(), settings)


def model_of_heads() -> GroundedModel:
    """Returns a model whose only trained part is the grounding heads."""
    with torch.device("meta"):
        language = build_language(config.Language(name="bert-base-uncased"), pretrained=False)
        model = GroundedModel(build_visual(config.Model(), language.width, pretrained=False), language)
    model.heads["grounding"] = GroundingHeads(2)
    freeze(model, "grounding")
    return model
