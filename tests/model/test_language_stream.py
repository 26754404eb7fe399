"""The language stream: embeddings of a text do not depend on its padding."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from groundray.model.language_stream import LanguageStream


@pytest.fixture(scope="module")
def stream() -> LanguageStream:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LanguageStream(BertModel(BertConfig(vocab_size=90, **shape), add_pooling_layer=False)).eval()


def test_padding_does_not_change_a_caption(stream: LanguageStream) -> None:
    tokens = torch.tensor([[2, 10, 11, 3]])
    longer = torch.tensor([[2, 10, 11, 3, 0, 0]])
    with torch.no_grad():
        short = stream(tokens, tokens > 0)
        torch.testing.assert_close(stream(longer, longer > 0)[:, :4], short, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lengths", [[6, 6], [6, 5]])
def test_texts_that_are_not_packed_have_berts_own_embeddings(stream: LanguageStream, lengths: list[int]) -> None:
    """To the last bit, with padding and without."""
    tokens = torch.randint(5, 90, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        expected = stream.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        assert torch.equal(stream(tokens, mask)[mask], expected[mask])
