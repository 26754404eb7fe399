"""Low-rank adapters of the language stream."""

from __future__ import annotations

import copy

import encoders
import pytest
import torch
from conftest import SmallWorld
from torch import nn

from groundray import config
from groundray.model.build import build_head, build_model, build_visual
from groundray.model.freezing import freeze, trainable_counts
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.model.language_stream import LanguageStream
from groundray.model.layer_order import layers_above_language
from groundray.model.lora import adapted_maps, add_adapters, merged_weights, plain_name, remove_adapters
from groundray.training.gradient_checkpointing import checkpoint_gradients

TOKENS = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])


@pytest.fixture
def model(world: SmallWorld) -> GroundedModel:
    settings = config.load("demo", world.settings())
    torch.manual_seed(0)
    model = build_model(settings.model)
    model.heads["grounding"] = build_head("grounding", settings.model, model, {})
    return model


def trains(layers: str | int = 1, **lora: object) -> config.Trained:
    return config.Trained(language_layers=layers, lora=config.Lora(**lora))


def moved(model: GroundedModel) -> GroundedModel:
    """Returns the model with adapters that are no longer 0."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def words(model: GroundedModel) -> torch.Tensor:
    return model.eval().language(TOKENS, TOKENS > 0)[TOKENS > 0].detach()


def test_only_adapters_of_the_trained_layers_are_trained(model: GroundedModel) -> None:
    before = words(model)
    chosen = trains(rank=3)
    freeze(model, "grounding", chosen)
    add_adapters(model, "grounding", chosen)
    assert torch.equal(words(model), before)  # B is 0
    trained = {name for name, parameter in model.language.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 6
    assert all(name.startswith("bert.encoder.layer.1.") and ".lora_" in name for name in trained)
    # query, key, value and output of width 128; two maps between 128 and 512
    assert trainable_counts(model)["language stream"] == 4 * 3 * (128 + 128) + 2 * 3 * (128 + 512)


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        (("query", "value"), 1, ["encoder.layer.1.attention.self.query", "encoder.layer.1.attention.self.value"]),
        (("attention.output.dense",), "all", [f"encoder.layer.{n}.attention.output.dense" for n in (0, 1)]),
    ],
)
def test_targets_are_ends_of_names(
    model: GroundedModel, targets: tuple[str, ...], layers: str | int, expected: list[str]
) -> None:
    assert adapted_maps(model, trains(layers, targets=targets)) == expected


def test_merged_weights_are_those_of_peft_and_give_the_same_embeddings(model: GroundedModel) -> None:
    """W + alpha / rank B A in place of W; the model without adapters then takes them strictly."""
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    chosen = trains("all", rank=4, alpha=6.0)
    freeze(model, "grounding", chosen)
    add_adapters(model, "grounding", chosen)
    unmerged = words(moved(model))
    weights = merged_weights(model)
    for name, tensor in model.state_dict().items():
        if name.endswith(".base_layer.weight"):
            prefix = name.removesuffix(".base_layer.weight")
            A, B = (model.state_dict()[f"{prefix}.lora_{kind}.default.weight"] for kind in "AB")
            assert torch.allclose(weights[f"{prefix}.weight"], tensor + 6 / 4 * B @ A, atol=1e-6)
    plain.load_state_dict(weights, strict=True)
    assert not torch.allclose(unmerged, words(model.eval()) * 1.01)
    assert torch.allclose(words(plain), unmerged, atol=1e-5)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    assert torch.allclose(words(model), words(plain), atol=1e-6)


def test_removed_adapters_leave_the_model_as_it_was(model: GroundedModel) -> None:
    before, state = words(model), copy.deepcopy(model.state_dict())
    chosen = trains("all")
    freeze(model, "grounding", chosen)
    add_adapters(model, "grounding", chosen)
    moved(model)
    remove_adapters(model)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.items())
    assert torch.equal(words(model), before)
    assert merged_weights(model).keys() == state.keys()


def test_adapters_are_a_function_of_seed_and_stage(model: GroundedModel) -> None:
    chosen, drawn = trains(), {}
    for stage, seed in (("grounding", 0), ("grounding", 0), ("grounding", 1), ("relational", 0)):
        torch.rand(3)
        state = torch.get_rng_state()
        add_adapters(model, stage, chosen, seed)
        assert torch.equal(torch.get_rng_state(), state)
        A = model.get_parameter("language.bert.encoder.layer.1.attention.self.query.lora_A.default.weight").detach()
        assert torch.equal(drawn.setdefault((stage, seed), A), A)
        remove_adapters(model)
    assert len({float(A[0, 0]) for A in drawn.values()}) == 3


@pytest.mark.thorough
@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_adapters_of_every_architecture_merge_into_its_own_weights(world: SmallWorld, name: str) -> None:
    """With gradient checkpointing too, whose layers have the signature of each. Fused projections have frozen rows."""
    settings = config.load("demo", world.settings()).model
    language = LanguageStream(encoders.encoder(name))
    model = GroundedModel(build_visual(settings, language.width, pretrained=False), language)
    model.heads["grounding"] = GroundingHeads(language.width)
    before = words(model)
    above = layers_above_language(model)
    assert {above[id(parameter)] for parameter in model.language.parameters()} == {0, 1, 2}

    chosen = trains(1)
    freeze(model, "grounding", chosen)
    add_adapters(model, "grounding", chosen)
    trained = [parameter for parameter in model.language.parameters() if parameter.requires_grad]
    assert trainable_counts(model)["language stream"] == sum(parameter.numel() for parameter in trained)
    moved(model)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_gradients(model)
        torch.manual_seed(1)
        loss = model.language(TOKENS, TOKENS > 0)[TOKENS > 0].square().sum()
        gradients.append(torch.autograd.grad(loss, trained))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

    unmerged, weights = words(model), merged_weights(model)
    remove_adapters(model)
    assert torch.equal(words(model), before)
    model.load_state_dict(weights, strict=True)
    assert torch.allclose(words(model), unmerged, atol=1e-5)
    assert not torch.allclose(unmerged, before, atol=1e-3)


def test_names_of_other_models_are_their_own() -> None:
    """A trunk of timm has maps that are called base_layer."""
    assert plain_name("visual.trunk.layers.base_layer.0.weight") == "visual.trunk.layers.base_layer.0.weight"
    assert plain_name("language.bert.layer.0.query.base_layer.bias") == "language.bert.layer.0.query.bias"
    assert plain_name("language.bert.layer.0.query.lora_A.default.weight") is None
