"""Which tokens of a text count, and means over them."""

from __future__ import annotations

import torch

from groundray.model.pooling import counted_tokens, mean_of_valid


def test_counted_tokens_leave_out_the_first_and_the_last() -> None:
    mask = torch.tensor([[True, True, True, True, False], [True, True, False, False, False]])
    assert counted_tokens(mask, special_tokens=False).int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert torch.equal(counted_tokens(mask, special_tokens=True), mask)


def test_mean_of_valid_ignores_other_tokens() -> None:
    x = torch.tensor([[[1.0], [3.0], [8.0]], [[5.0], [7.0], [9.0]], [[1.0], [1.0], [1.0]]])
    valid = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
    assert mean_of_valid(x, valid).tolist() == [[2.0], [8.0], [0.0]]
