"""SigLIP's text tower under the names of a model that AutoModel lists."""

from __future__ import annotations

from pathlib import Path

import encoders
import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from groundray import config
from groundray.model import export, text_tower
from groundray.model.build import build_language
from groundray.model.pretrained import load_encoder_config, load_tokenizer

NAMES = (*text_tower.TOWERS, "roberta")


def saved(tmp_path: Path, name: str, **changes: object) -> tuple[PreTrainedModel, Path]:
    """Export an encoder with random weights; return it and the folder."""
    folder = encoders.write(tmp_path / "published", name, **changes)
    settings = config.Language(name=str(folder))
    stream = build_language(settings)
    export.save_language(stream.encoder, load_tokenizer(settings), tmp_path / "export", stream.state_dict())
    return stream.encoder.eval(), tmp_path / "export"


@pytest.mark.parametrize("name", text_tower.TOWERS)
@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "quick_gelu"])
def test_the_listed_model_computes_what_the_tower_computes(tmp_path: Path, name: str, act: str) -> None:
    tower, folder = saved(tmp_path, name, hidden_act=act, layer_norm_eps=0.03, projection_size=8)
    opened = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    assert type(opened).__name__ == "MegatronBertModel"
    tokens = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    with torch.no_grad():
        theirs = opened(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        ours = tower.double()(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    for one, other in zip(theirs.hidden_states[:-1], ours.hidden_states[:-1], strict=True):
        torch.testing.assert_close(one[mask], other[mask], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(theirs.last_hidden_state[mask], ours.last_hidden_state[mask], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_read_back_as_the_encoder_to_the_bit(tmp_path: Path, name: str) -> None:
    encoder, folder = saved(tmp_path, name)
    settings = config.Language(name=str(folder))
    again = build_language(settings).encoder
    assert type(again) is type(encoder)
    assert again.config.to_diff_dict() == encoder.config.to_diff_dict()
    assert load_encoder_config(settings).model_type == name
    pooled = {"head.weight", "head.bias"} if name in text_tower.TOWERS else set()
    weights, before = again.state_dict(), encoder.state_dict()
    assert weights.keys() == before.keys()
    assert {key for key in weights if not torch.equal(weights[key], before[key])} == pooled
    assert not any(weights[key].any() for key in pooled)
    from_folder = config.Language(name=str(tmp_path / "published"), weights=str(folder))  # of the same architecture
    assert torch.equal(next(build_language(from_folder).encoder.parameters()), next(encoder.parameters()))


def test_an_export_that_was_trained_further_elsewhere_keeps_its_function(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, "siglip_text_model")
    elsewhere = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in elsewhere.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    elsewhere.save_pretrained(tmp_path / "further")
    assert AutoConfig.from_pretrained(tmp_path / "further").text_tower["model_type"] == "siglip_text_model"
    ours = build_language(config.Language(name=str(tmp_path / "further"))).eval()
    tokens = torch.arange(5, 13)[None]
    with torch.no_grad():
        expected = elsewhere.eval()(tokens).last_hidden_state
        torch.testing.assert_close(ours(tokens, tokens > 0), expected, rtol=1e-5, atol=1e-5)
