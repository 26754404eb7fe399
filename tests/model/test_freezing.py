"""Which parameters a stage trains, and which modules are in train mode."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallWorld
from transformers import BertModel

from groundray import config
from groundray.model.build import build_head, build_model
from groundray.model.freezing import freeze, set_dropout, set_language_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.language_stream import LanguageStream
from groundray.training.preflight import preview


@pytest.fixture
def settings(world: SmallWorld) -> config.Settings:
    return config.load("demo", world.settings())


@pytest.fixture
def model(settings: config.Settings) -> GroundedModel:
    torch.manual_seed(0)
    model = build_model(settings.model)
    model.heads["grounding"] = build_head("grounding", settings.model, model, {})
    return model


def trained(model: GroundedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("stage", "millions", "bert"),
    [("visual", 197.37, 0.0), ("grounding", 56.07, 47.25), ("relational", 21.57, 11.81)],
)
def test_papers_stages_train_as_many_parameters_as_the_authors_code(stage: str, millions: float, bert: float) -> None:
    """197.4, 56.07 and 21.57 M parameters, of which BERT 47.25 and 11.81 M (method.md)."""
    plan = preview(config.load("paper", [f"--stages={stage}"]))
    (counts,) = (stage_preview.trainable for stage_preview in plan.stages)
    assert round(sum(counts.values()) / 1e6, 2) == millions
    assert round(counts.get("language stream", 0) / 1e6, 2) == bert
    assert ("visual trunk" in counts) == (stage == "visual")


def test_only_the_named_parts_are_trained_and_in_train_mode(model: GroundedModel) -> None:
    freeze(model, "grounding", config.Trained(trunk=False, language_layers=1, query_key=False))
    names = trained(model)
    assert not any("trunk" in name or "embeddings" in name or "layer.0." in name for name in names)
    assert not any(".query." in name or ".key." in name for name in names)
    assert any("layer.1." in name for name in names)
    assert {"heads.grounding.visual.weight", "heads.grounding.language.weight", "visual.attention.positions"} <= names
    bert = model.language.bert
    assert not any(module.training for module in bert.encoder.layer[0].modules())  # dropout is off
    assert not any(module.training for module in model.visual.trunk.modules())
    assert bert.encoder.layer[1].training
    assert not bert.embeddings.training


def test_all_parameters_can_be_trained(model: GroundedModel) -> None:
    freeze(model, "grounding", config.Trained(trunk=True, language_layers="all", query_key=True))
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_frozen_attention_leaves_only_the_heads(model: GroundedModel) -> None:
    heads = {f"heads.grounding.{head}.{part}" for head in ("visual", "language") for part in ("weight", "bias")}
    freeze(model, "grounding", config.Trained(attention=False, language_layers=0))
    assert trained(model) == heads
    freeze(model, "grounding")
    assert trained(model) == heads


def test_training_one_stream_freezes_the_other(model: GroundedModel) -> None:
    freeze(model, "grounding", config.TrainedVisual(trunk=True))
    assert not any(name.startswith("language.") for name in trained(model))
    assert not model.language.training
    freeze(model, "grounding", config.TrainedLanguage(language_layers="all", query_key=True))
    assert not any(name.startswith("visual.") for name in trained(model))
    assert {name for name, _ in model.named_parameters() if name.startswith("language.")} <= trained(model)


def test_too_many_language_layers_are_refused(model: GroundedModel) -> None:
    with pytest.raises(ValueError, match="expected at most 2, got 8"):
        freeze(model, "grounding", config.Trained(language_layers=8))


def test_frozen_trunk_makes_no_graph(model: GroundedModel) -> None:
    images = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    freeze(model, "grounding", config.Trained(trunk=False, language_layers=0))
    assert not model.visual.features(images).requires_grad
    freeze(model, "grounding", config.Trained(trunk=True, language_layers=0))
    assert model.visual.features(images).requires_grad


def test_language_dropout_covers_hidden_and_attention_dropout(model: GroundedModel) -> None:
    configuration = model.language.encoder.config
    configuration.attention_probs_dropout_prob = 0.2
    model.language = LanguageStream(BertModel(configuration, add_pooling_layer=False))
    bert = model.language.bert
    rates = {name: module.p for name, module in bert.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert len(rates) == 1 + 3 * 2  # of the embeddings; weights, their output and the FFN of two layers
    set_language_dropout(model, 0.4)
    assert {module.p for module in bert.modules() if isinstance(module, torch.nn.Dropout)} == {0.4}
    assert (bert.config.hidden_dropout_prob, bert.config.attention_probs_dropout_prob) == (0.1, 0.2)  # as exported
    set_language_dropout(model, None)
    restored = {name: module.p for name, module in bert.named_modules() if name in rates}
    assert restored == {name: 0.2 if name.endswith("attention.self.dropout") else 0.1 for name in rates}


def test_language_dropout_changes_training_and_not_frozen_parts(model: GroundedModel) -> None:
    tokens, mask = torch.arange(1, 9)[None], torch.ones(1, 8, dtype=torch.bool)

    def embedded(rate: float | None, layers: int) -> torch.Tensor:
        freeze(model, "grounding", config.Trained(language_layers=layers))
        set_language_dropout(model, rate)
        torch.manual_seed(0)
        return model.language(tokens, mask)

    assert torch.equal(embedded(None, 1), embedded(0.1, 1))
    assert not torch.equal(embedded(0.1, 1), embedded(0.3, 1))
    assert torch.equal(embedded(0.1, 0), embedded(0.9, 0))


def test_dropout_rates_are_set(model: GroundedModel) -> None:
    set_dropout(model, 0.3, 0.5)
    assert model.visual.attention.dropout.p == 0.3
    freeze(model, "grounding", config.Trained(language_layers=1))
    features = torch.ones(4, 128, 7, 7)
    dropped = model.visual.channel_dropout(features)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped.amax((2, 3)), dropped.amin((2, 3)))  # whole channels are dropped
    freeze(model, "grounding", config.Trained(attention=False, language_layers=1))
    assert torch.equal(model.visual.channel_dropout(features), features)
