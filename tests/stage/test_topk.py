"""Top-k accuracy of written-out scores."""

from __future__ import annotations

import torch

from groundray.stage.topk import hits

SCORES = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])


def test_hits_are_counted_for_each_k() -> None:
    truth = torch.tensor([0, 1, 2, 0])  # ranks 1, 2, 3, and a tie of three that counts as 3
    assert hits(SCORES, truth, (1, 2, 3, 10)).tolist() == [1, 2, 4, 4]


def test_nothing_is_hit_among_nothing() -> None:
    assert hits(SCORES[:0], torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0, 0]
