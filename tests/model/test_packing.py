"""Packed texts have the same embeddings and gradients as padded ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from groundray.model.language_stream import LanguageStream
from groundray.model.packing import assign_rows, pack


@pytest.fixture(scope="module")
def stream() -> LanguageStream:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return LanguageStream(BertModel(BertConfig(vocab_size=90, **shape), add_pooling_layer=False)).double().eval()


def test_packed_texts_have_the_embeddings_of_padded_ones(stream: LanguageStream) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 90, (40, 12), generator=generator)
    valid = torch.arange(12) < torch.randint(1, 13, (40, 1), generator=generator)
    valid[3] = torch.tensor([True, False, True] * 4)  # a mask with gaps
    packed = pack(tokens, valid)
    assert packed is not None
    assert len(packed.tokens) <= valid.sum().item() / 12 * 1.2
    weights = torch.randn(40, 12, 16, dtype=torch.float64, generator=generator) * valid[..., None]
    results = []
    for embeddings in (
        stream(tokens, valid),
        stream.bert(input_ids=tokens, attention_mask=valid).last_hidden_state,
    ):
        gradients = torch.autograd.grad((embeddings * weights).sum(), list(stream.parameters()))
        results.append([embeddings[valid], *gradients])
    for packed_tensor, padded_tensor in zip(*results, strict=True):
        torch.testing.assert_close(packed_tensor, padded_tensor, rtol=1e-9, atol=1e-12)


def test_texts_that_fill_their_rows_are_not_packed() -> None:
    assert pack(torch.ones(3, 4, dtype=torch.int64), torch.ones(3, 4, dtype=torch.bool)) is None
    assert pack(torch.ones(1, 4, dtype=torch.int64), torch.tensor([[True, True, False, False]])) is None


def test_attention_stays_within_each_text() -> None:
    tokens = torch.tensor([[7, 8, 0, 0], [1, 2, 3, 4], [9, 9, 0, 0]])
    packed = pack(tokens, tokens > 0)
    assert packed is not None
    assert packed.tokens.tolist() == [[1, 2, 3, 4], [7, 8, 9, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert packed.flat_index.tolist() == [4, 5, 0, 1, 2, 3, 6, 7]
    assert packed.source.tolist() == [0, 1, 4, 5, 6, 7, 8, 9]
    assert packed.same_text[1, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(20, 24))
def test_packed_texts_do_not_overlap(lengths: list[int], width: int) -> None:
    starts, rows = assign_rows(lengths, width)
    taken = [start + token for start, length in zip(starts, lengths, strict=True) for token in range(length)]
    assert len(set(taken)) == len(taken) == sum(lengths)
    assert all(index < rows * width for index in taken)
    assert all(start // width == (start + max(1, n) - 1) // width for start, n in zip(starts, lengths, strict=True))
    assert rows <= max(1, len(lengths))
    if len(lengths) > 1 and sum(lengths):
        assert rows <= 2 * sum(lengths) / width + 1  # at most one row is less than half full
