"""The language stream: embeddings of a text do not depend on its padding."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from groundray.model.language_stream import LanguageStream


def test_padding_does_not_change_a_caption() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    stream = LanguageStream(BertModel(BertConfig(vocab_size=90, **shape), add_pooling_layer=False)).eval()
    tokens = torch.tensor([[2, 10, 11, 3]])
    longer = torch.tensor([[2, 10, 11, 3, 0, 0]])
    with torch.no_grad():
        short = stream(tokens, tokens > 0)
        torch.testing.assert_close(stream(longer, longer > 0)[:, :4], short, rtol=1e-5, atol=1e-6)
