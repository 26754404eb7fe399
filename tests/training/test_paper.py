"""The preset `paper` holds every number of the paper's method: the model, the stages, and how they are trained.

Models are built without memory (`meta`), so that BERT base and VGG16 cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torchvision
from torch import nn, optim

from groundray import config
from groundray.data.image_inputs import CentreCrop
from groundray.data.sources.visual_genome import Filter
from groundray.data.stream import Source
from groundray.data.transforms import ASPECTS
from groundray.model.build import build_head, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads, RetrievalHeads
from groundray.model.relation_module import CrossModalAttention, RelationalModule
from groundray.model.trunk import build_trunk
from groundray.model.visual_stream import SpatialAttention
from groundray.stage.grounding import GroundingStage
from groundray.stage.language import LanguageStage
from groundray.stage.protocol import HIGHEST_PREDICATE_TOP1, HIGHEST_TOP1, LOWEST_LOSS, Best, Stage, centre_crop
from groundray.stage.relational import RelationalStage
from groundray.stage.retrieval import RetrievalStage
from groundray.stage.visual import VisualStage
from groundray.training.optimizer import make_optimizer, set_learning_rates
from groundray.training.preflight import still_operators

STAGES: dict[str, Any] = {
    "visual": VisualStage,
    "language": LanguageStage,
    "grounding": GroundingStage,
    "relational": RelationalStage,
    "retrieval": RetrievalStage,
}


@pytest.fixture(scope="module")
def paper() -> config.Settings:
    return config.load("paper")


@pytest.fixture(scope="module")
def model(paper: config.Settings) -> GroundedModel:
    """The model without memory, with the heads of all stages and of as many classes and predicates as the paper's."""
    with torch.device("meta"):
        model = build_model(paper.model, pretrained=False)
        for name in STAGES:
            counts = {kind: getattr(paper.stage(name), kind, None) for kind in ("classes", "predicates")}
            words = {kind: tuple(map(str, range(count))) for kind, count in counts.items() if count}
            model.heads[name] = build_head(name, paper.model, model, words)
    return model


def prepared(name: str, paper: config.Settings, model: GroundedModel) -> Stage:
    """Return a stage without data, after it has frozen parts of the model and set its dropout."""
    nothing = object.__new__(Source)
    stage = cast(Stage, STAGES[name](paper.stage(name), nothing, nothing, {}))
    stage.prepare(model)
    return stage


def dropouts(module: nn.Module) -> Iterator[nn.Dropout]:
    return (part for part in module.modules() if isinstance(part, nn.Dropout))


def sizes(layers: nn.Module) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear layer."""
    return [(part.in_features, part.out_features) for part in layers.modules() if isinstance(part, nn.Linear)]


# The model


def test_stages_run_in_the_papers_order(paper: config.Settings) -> None:
    assert paper.stages == ("visual", "grounding", "relational", "retrieval")


def test_input_and_trunk(paper: config.Settings, model: GroundedModel) -> None:
    assert paper.model.image_size == 224
    assert (paper.model.trunk.name, paper.model.trunk.weights) == ("vgg16", "published")
    layers = [part for part in model.visual.trunk.layers.modules() if not isinstance(part, nn.Sequential)]
    convolutions = [part for part in layers if isinstance(part, nn.Conv2d)]
    channels = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [part.out_channels for part in convolutions] == channels
    assert all(part.kernel_size == (3, 3) for part in convolutions)
    assert sum(isinstance(part, nn.MaxPool2d) for part in layers) == 4
    assert isinstance(layers[-1], nn.ReLU)  # without the last max-pool
    images = torch.zeros(1, 3, 224, 224, dtype=torch.uint8, device="meta")
    assert model.visual.features(images).shape == (1, 512, 14, 14)


def test_pixels_are_normalised_by_imagenets_mean_and_sd(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(weights: None) -> SimpleNamespace:
        return SimpleNamespace(features=nn.Sequential(nn.Conv2d(3, 512, 1), nn.MaxPool2d(2)))

    monkeypatch.setattr(torchvision.models, "vgg16", small)
    trunk = build_trunk("vgg16", "none")
    torch.testing.assert_close(trunk.mean.flatten() / 255, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(trunk.sd.flatten() / 255, torch.tensor([0.229, 0.224, 0.225]))


def test_embedder_and_spatial_attention(model: GroundedModel) -> None:
    embedder, block = model.visual.embedder, model.visual.attention
    assert (embedder.in_channels, embedder.out_channels, embedder.kernel_size) == (512, 768, (1, 1))
    assert block.positions.shape == (196, 768)
    assert (block.attention.num_heads, block.attention.embed_dim) == (12, 768)
    assert sizes(block.ffn) == [(768, 3072), (3072, 768)]
    assert isinstance(block.ffn[1], nn.ReLU)
    assert block.attention_norm.normalized_shape == block.ffn_norm.normalized_shape == (768,)
    assert block.attention.dropout == 0  # dropout follows the attention's output and the FFN
    assert sum(1 for _ in dropouts(block)) == 1


def test_language_stream(paper: config.Settings, model: GroundedModel) -> None:
    assert (paper.model.language.name, paper.model.language.weights) == ("bert-base-uncased", "published")
    bert = model.language.bert.config
    assert (bert.hidden_size, bert.num_hidden_layers, bert.num_attention_heads, bert.vocab_size) == (
        768,
        12,
        12,
        30522,
    )


def test_grounding_heads_are_linear(model: GroundedModel) -> None:
    heads = model.head(GroundingHeads)
    assert sizes(heads.visual) == sizes(heads.language) == [(768, 768)]


def test_relational_module(model: GroundedModel) -> None:
    module = model.head(RelationalModule)
    attention = module.attention
    assert attention.heads == 8
    assert 768 // attention.heads == 96
    assert {name for name, _ in attention.named_children()} == {"query", "key", "value"}  # no output projection, norm
    assert sizes(attention) == [(768, 768)] * 3
    assert (attention.query.bias, attention.key.bias) == (None, None)
    assert attention.value.bias is not None
    assert sizes(module.space) == [(768, 32)]
    assert module.operators.shape == (114, 32, 32)
    assert module.operator_dropout.p == 0.1
    assert sizes(module.classifier) == [(768, 256), (256, 55)]
    assert isinstance(module.classifier[1], nn.ReLU)
    assert [part.p for part in dropouts(module.classifier)] == [0.1]


def test_retrieval_heads(model: GroundedModel) -> None:
    for head in (model.head(RetrievalHeads).image, model.head(RetrievalHeads).text):
        assert sizes(head) == [(768, 768), (768, 768)]
        assert [type(part) for part in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


def test_classifier_of_the_visual_stage(paper: config.Settings, model: GroundedModel) -> None:
    classifier = cast(Any, model.heads["visual"])
    assert (classifier.side, classifier.window) == (14, 2)  # to 7x7
    assert sizes(classifier) == [(7 * 7 * 768, 4096), (4096, 4096), (4096, 1000)]
    kinds = [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert [type(part) for part in classifier.layers] == kinds


# The stages


@pytest.mark.parametrize(
    ("name", "data", "batch_size", "epochs", "best"),
    [
        ("visual", "imagenet", 200, 200, HIGHEST_TOP1),
        ("grounding", "coco", 180, 100, LOWEST_LOSS),
        ("relational", "visual-genome", 180, 150, HIGHEST_PREDICATE_TOP1),
        ("retrieval", "coco", 300, 150, LOWEST_LOSS),
    ],
)
def test_data_batches_epochs_and_checkpoints(
    paper: config.Settings, name: str, data: str, batch_size: int, epochs: int, best: Best
) -> None:
    settings = paper.stage(name)
    assert (settings.train, settings.val) == (f"data/{data}/train", f"data/{data}/val")
    assert (settings.batch_size, settings.epochs, STAGES[name].best) == (batch_size, epochs, best)
    assert (settings.precision, settings.clip_norm, settings.optimizer.warmup) == ("float32", None, 0)


@pytest.mark.parametrize("name", list(STAGES))
def test_optimizers(paper: config.Settings, model: GroundedModel, name: str) -> None:
    stage = prepared(name, paper, model)
    optimizer = make_optimizer(model, stage.settings.optimizer)
    rates = {"visual": 0.01, "language": 5e-5, "grounding": 5e-5, "relational": 1e-5, "retrieval": 5e-5}
    for group in optimizer.param_groups:
        assert group["initial_lr"] == rates[name]  # of both streams
        if name == "visual":
            assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
        else:
            assert (group["betas"], group["weight_decay"]) == ((0.95, 0.999), 5e-7)
    assert type(optimizer) is (optim.SGD if name == "visual" else optim.Adam)


@pytest.mark.parametrize(
    ("name", "first_epoch", "every"),
    [("visual", 0, 20), ("language", 1, 15), ("grounding", 1, 15), ("relational", 1, 15), ("retrieval", 1, 30)],
)
def test_learning_rate_of_every_epoch(paper: config.Settings, name: str, first_epoch: int, every: int) -> None:
    """It halves at epochs 15, 30, ... counted from 1 (retrieval: 30, 60, ...); at 20, 40, ... from 0 (visual)."""
    settings = paper.stage(name)
    weights = {"params": [nn.Parameter(torch.zeros(1))], "part": "visual", "initial_lr": settings.optimizer.lr}
    optimizer = optim.SGD([weights])
    rate = settings.optimizer.lr
    for number in range(first_epoch, first_epoch + settings.epochs):
        if number and number % every == 0:
            rate /= 2
        rates = set_learning_rates(optimizer, settings, step=1000 * (number - first_epoch), steps_per_epoch=1000)
        assert rates == {"learning_rate": rate}
        assert optimizer.param_groups[0]["lr"] == rate
    assert settings.epochs < every or rate < settings.optimizer.lr


@pytest.mark.parametrize(
    ("name", "rate"), [("visual", 0.1), ("language", 0.1), ("grounding", 0.3), ("relational", 0.1), ("retrieval", 0.1)]
)
def test_dropout_of_both_streams(paper: config.Settings, model: GroundedModel, name: str, rate: float) -> None:
    """In every order of stages: a stage sets what the one before it had changed. Frozen parts are in eval mode."""
    prepared("grounding" if name != "grounding" else "relational", paper, model)
    stage = prepared(name, paper, model)
    active = [part for stream in (model.visual, model.language) for part in dropouts(stream) if part.training]
    assert {part.p for part in active if not isinstance(part, nn.Dropout2d)} == (
        {rate} if name != "retrieval" else set()
    )
    assert [model.visual.attention.dropout in active, any(part in active for part in dropouts(model.language))] == {
        "visual": [True, False],
        "language": [False, True],
        "grounding": [True, True],
        "relational": [True, True],
        "retrieval": [False, False],
    }[name]
    assert model.visual.channel_dropout.p == 0 or not model.visual.channel_dropout.training
    heads = {part.p for part in dropouts(model.heads[stage.name])}
    assert (
        heads
        == {
            "visual": {0.5},
            "language": set(),
            "grounding": set(),
            "relational": {0.1},
            "retrieval": {0.5},
        }[name]
    )


@pytest.mark.parametrize(
    ("name", "streams", "layers"),
    [
        ("visual", {"visual.trunk", "visual.embedder", "visual.attention"}, []),
        ("grounding", {"visual.embedder", "visual.attention"}, list(range(4, 12))),
        ("relational", {"visual.embedder", "visual.attention"}, [10, 11]),
        ("retrieval", set(), []),
    ],
)
def test_trained_parts(
    paper: config.Settings, model: GroundedModel, name: str, streams: set[str], layers: list[int]
) -> None:
    prepared(name, paper, model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = {f"visual.{part}" for part in ("trunk", "embedder", "attention")}
    everything = {name for name, _ in model.named_parameters()}
    expected = {each for each in everything if any(each.startswith(f"{part}.") for part in parts & streams)}
    expected |= {each for each in everything if each.startswith(f"heads.{name}.")}
    for layer in layers:
        prefix = f"language.bert.encoder.layer.{layer}."
        expected |= {each for each in everything if each.startswith(prefix)}
    expected -= {each for each in everything if ".attention.self.query." in each or ".attention.self.key." in each}
    assert trained == expected


def test_image_transforms(paper: config.Settings) -> None:
    visual = paper.stage("visual")
    assert (visual.crop_area, ASPECTS, visual.flip, visual.resize) == ((0.08, 1.0), (3 / 4, 4 / 3), True, 256)
    crops = {
        name: [centre_crop(paper.stage(name), paper.model.image_size, training) for training in (True, False)]
        for name in ("grounding", "relational", "retrieval")
    }
    assert crops == {
        "grounding": [CentreCrop(256, 224), CentreCrop(256, 224)],
        "relational": [CentreCrop(224, 224), CentreCrop(224, 224)],
        "retrieval": [CentreCrop(224, 224), CentreCrop(256, 224)],
    }


def test_limits_losses_and_counts(paper: config.Settings) -> None:
    grounding, relational, retrieval = (paper.stage(name) for name in ("grounding", "relational", "retrieval"))
    assert (grounding.max_tokens, relational.max_tokens, retrieval.max_tokens) == (32, 10, 32)
    assert Filter().max_objects == 32
    assert (grounding.temperature, relational.temperature, retrieval.temperature) == (0.1, 1.0, 0.1)
    assert grounding.similarity == "dot"
    assert (relational.weights.predicate, relational.weights.pair, relational.weights.object) == (1, 1, 1)
    assert (paper.stage("visual").classes, relational.predicates, relational.classes) == (1000, 114, 55)
    assert grounding.special_tokens
    assert relational.special_tokens  # [CLS] and [SEP] count in the mean over a phrase
    assert retrieval.special_tokens


# The start


def test_new_layers_start_as_in_pytorch(paper: config.Settings) -> None:
    """Linear layers: uniform within 1 / sqrt(inputs), weights and biases; positions: normal (nn.Embedding)."""
    assert paper.model.initialization == "pytorch"
    torch.manual_seed(0)
    block = SpatialAttention(768, 14, 12, 3072, initialization=paper.model.initialization)
    heads, attention = (
        GroundingHeads(768, paper.model.initialization),
        CrossModalAttention(768, 8, paper.model.initialization),
    )
    qkv = block.attention.in_proj_weight, block.attention.in_proj_bias
    linear = [qkv, *((part.weight, part.bias) for part in block.modules() if isinstance(part, nn.Linear))]
    for module in (heads, attention):
        linear += [(part.weight, part.bias) for part in module.modules() if isinstance(part, nn.Linear)]
    assert len(linear) == 1 + 3 + 2 + 3
    for weight, bias in linear:
        bound = 1 / math.sqrt(weight.shape[1])
        for tensor in (weight, bias) if bias is not None else (weight,):
            assert tensor.abs().max().item() <= bound
            assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert block.positions.std().item() == pytest.approx(1, rel=0.02)


def test_operators_start_at_xaviers_size(paper: config.Settings) -> None:
    assert paper.model.relational.operator_initialization == "xavier"
    operators = RelationalModule(8, predicates=115, classes=2, operators="xavier").operators
    assert operators.shape == (115, 32, 32)
    bound = math.sqrt(6 / (32 * 32 + 115 * 32))  # of fan_in and fan_out, as torch.nn.init counts them
    assert operators.abs().max().item() <= bound
    assert operators.std().item() == pytest.approx(0.0206, abs=1e-4)


def test_operators_that_cannot_move_are_told() -> None:
    normal = "--model.relational.operator_initialization=normal"
    warning = still_operators(config.load("paper", [normal]))
    assert warning is not None
    assert "1e-05" in warning
    assert "--model.relational.operator_initialization xavier" in warning
    assert still_operators(config.load("paper")) is None
    assert still_operators(config.load("paper", [normal, "--relational.optimizer.lr=0.001"])) is None
    assert still_operators(config.load("paper", [normal, "--stages=visual,grounding"])) is None
    assert still_operators(config.load("demo")) is None
    assert still_operators(config.load("photos")) is None
