"""Texts by the projected vectors of CLIP, SigLIP and ALIGN, against the calls of `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis.models import word_pieces
from transformers import (
    AlignConfig,
    AlignModel,
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModelWithProjection,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextModel,
)

from groundray.analysis.inputs.embedding import Embedder, Options
from groundray.model.projected_text import read_projected_text

TEXTS = ("zebra", "striped horse", "a photo of the black and white bear", "horse")
PHOTO, LIST = "a photo of a {}", "{}, a bear and the horse"
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = SHAPE | {"vocab_size": 30, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
VISION = SHAPE | {"image_size": 32, "patch_size": 16}
ALIGN_VISION = {
    "image_size": 32,
    "hidden_dim": 16,
    "width_coefficient": 0.5,
    "depth_coefficient": 0.3,
    "kernel_sizes": [3],
    "in_channels": [8],
    "out_channels": [4],
    "depthwise_padding": [],
    "strides": [1],
    "num_block_repeats": [1],
    "expand_ratios": [1],
}
MODELS: dict[str, tuple[Any, Any]] = {
    # the text tower's own projection_dim is the default, and not the model's
    "clip": (CLIPModel, CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)),
    "metaclip_2": (MetaClip2Model, MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=12)),
    "siglip": (
        SiglipModel,
        SiglipConfig(text_config=TEXT | {"max_position_embeddings": 40, "projection_size": 16}, vision_config=VISION),
    ),
    "siglip2": (
        Siglip2Model,
        Siglip2Config(text_config=TEXT | {"max_position_embeddings": 40, "projection_size": 16}, vision_config=VISION),
    ),
    "altclip": (AltCLIPModel, AltCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)),
    "chinese_clip": (ChineseCLIPModel, ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)),
    "align": (AlignModel, AlignConfig(text_config=TEXT, vision_config=ALIGN_VISION, projection_dim=12)),
}


def write(folder: Path, name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some begin at 0 or nearly so
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    word_pieces().save_pretrained(folder)
    return model


@torch.inference_mode()
def features(model: Any, text: str, padded: bool) -> np.ndarray:
    """As the documentation of transformers has it: SigLIP's texts are padded to the maximum length, and not masked."""
    tokenizer = word_pieces()
    if padded:
        ids = tokenizer(text, padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
        return model.get_text_features(input_ids=ids).pooler_output[0].numpy()
    return model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0].numpy()


@pytest.mark.parametrize("name", ["clip", "metaclip_2", "siglip", "align", "altclip", "chinese_clip"])
def test_a_whole_model_gives_its_projected_vectors(tmp_path: Path, name: str) -> None:
    model, padded = write(tmp_path, name), name.startswith("siglip")
    embedder = Embedder.load(tmp_path)
    expected = np.stack([features(model, text, padded) for text in TEXTS])
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (4, 16 if padded else 12)
    assert np.abs(expected - expected[0]).max(axis=1)[1:].min() > 1e-3  # texts differ
    sentences = Embedder.load(tmp_path, Options(templates=(PHOTO, LIST)))
    expected = np.stack(
        [np.mean([features(model, one.format(text), padded) for one in (PHOTO, LIST)], axis=0) for text in TEXTS[:2]]
    )
    np.testing.assert_allclose(sentences.embed(TEXTS[:2]), expected, rtol=1e-4, atol=1e-5)
    assert "projected vector of the text" in embedder.about
    assert PHOTO in sentences.about


@pytest.mark.parametrize("name", ["clip", "metaclip_2", "siglip", "align", "altclip", "chinese_clip"])
def test_mean_over_the_tokens_is_taken_if_asked_for(tmp_path: Path, name: str) -> None:
    model: Any = write(tmp_path, name)
    embedder = Embedder.load(tmp_path, Options(projected=False))
    ids = word_pieces()("striped horse", return_tensors="pt")["input_ids"]
    expected = model.text_model(ids).last_hidden_state[0, 1:3].detach().mean(0)
    np.testing.assert_allclose(embedder.embed(["striped horse"])[0], expected, rtol=1e-4, atol=1e-5)
    assert embedder.digest != Embedder.load(tmp_path).digest


def test_siglip2_gives_its_projected_vectors(tmp_path: Path) -> None:
    """By another tokenizer than the Gemma's that transformers reads for it."""
    whole = write(tmp_path, "siglip2")
    model, projection, missing = read_projected_text(str(tmp_path)) or pytest.fail("it has a projection")
    assert missing == []
    found = Embedder("siglip2", model, word_pieces(), projection=projection).embed(TEXTS)
    expected = np.stack([features(whole, text, padded=True) for text in TEXTS])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tower_saved_with_its_projection_gives_projected_vectors(tmp_path: Path) -> None:
    model = write(tmp_path / "whole", "clip")
    tower = CLIPTextModelWithProjection.from_pretrained(
        tmp_path / "whole", config=model.config.text_config.__class__(**TEXT | {"projection_dim": 12})
    )
    tower.save_pretrained(tmp_path / "tower")
    word_pieces().save_pretrained(tmp_path / "tower")
    whole = Embedder.load(tmp_path / "whole")
    np.testing.assert_allclose(Embedder.load(tmp_path / "tower").embed(TEXTS), whole.embed(TEXTS), rtol=1e-4, atol=1e-5)


def test_a_bare_tower_gives_the_mean(tmp_path: Path) -> None:
    for name, model in {
        "clip": write(tmp_path / "clip", "clip"),
        "siglip": write(tmp_path / "siglip", "siglip"),
    }.items():
        tower: Any = model.text_model
        tower.save_pretrained(tmp_path / f"{name}-tower")
        word_pieces().save_pretrained(tmp_path / f"{name}-tower")
        found = Embedder.load(tmp_path / f"{name}-tower").embed(TEXTS)
        mean = Embedder.load(tmp_path / name, Options(projected=False)).embed(TEXTS)
        np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_options_of_the_mean_are_noted_and_not_used(tmp_path: Path) -> None:
    write(tmp_path, "clip")
    found = Embedder.load(tmp_path, Options(special_tokens=True, layer=1))
    assert found.notes == ("--special-tokens, --layer: not used for projected vectors (--no-projection)",)
    assert np.array_equal(found.embed(TEXTS), Embedder.load(tmp_path).embed(TEXTS))
    assert Embedder.load(tmp_path, Options(layer=1, projected=False)).notes == ()


def test_the_image_tower_is_no_part_of_the_model(tmp_path: Path) -> None:
    """ALIGN is loaded whole; its images take memory, and change no text's vector."""
    model: Any = write(tmp_path / "one", "align")
    with torch.no_grad():
        next(model.vision_model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "other")
    word_pieces().save_pretrained(tmp_path / "other")
    one, other = Embedder.load(tmp_path / "one"), Embedder.load(tmp_path / "other")
    assert not hasattr(one._model, "vision_model")
    assert one.digest == other.digest


def test_models_without_their_projection_or_padding_are_refused(tmp_path: Path) -> None:
    model: Any = write(tmp_path / "clip", "clip")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "text_projection" not in name}
    model.save_pretrained(tmp_path / "clip", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks weights of its model: text_projection\.weight"):
        Embedder.load(tmp_path / "clip")
    write(tmp_path / "siglip", "siglip")
    tokenizer = word_pieces()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="a tokenizer with a padding token, got one without"):
        Embedder.load(tmp_path / "siglip")
    assert SiglipTextModel.from_pretrained(tmp_path / "siglip") is not None
