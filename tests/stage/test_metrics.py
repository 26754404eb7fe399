"""Ranks, recall and top-k counts of scores that are written out."""

from __future__ import annotations

import torch

from groundray.stage.metrics import ranks, recalls, top_k_counts

# rows are images, columns captions; the diagonal belongs together
S = torch.tensor(
    [
        [0.9, 0.1, 0.2],
        [0.8, 0.5, 0.7],
        [0.1, 0.6, 0.3],
    ]
)
SCORES = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])


def test_rank_counts_candidates_that_score_as_high() -> None:
    assert ranks(S, torch.arange(3)).tolist() == [1, 3, 2]  # image to text
    assert ranks(S.T, torch.arange(3)).tolist() == [1, 2, 2]  # text to image


def test_ties_count_against_the_query() -> None:
    assert ranks(torch.zeros(4, 4), torch.arange(4)).tolist() == [4, 4, 4, 4]


def test_recalls_of_both_directions() -> None:
    metrics = recalls(S, at=(1, 2))
    assert metrics["image_to_text/recall@1"] == 1 / 3
    assert metrics["image_to_text/recall@2"] == 2 / 3
    assert metrics["text_to_image/recall@2"] == 1.0
    assert metrics["image_to_text/mean_rank"] == 2.0
    assert metrics["text_to_image/median_rank"] == 2.0


def test_top_k_counts_for_each_k() -> None:
    truth = torch.tensor([0, 1, 2, 0])  # ranks 1, 2, 3, and a tie of three that has rank 3
    assert top_k_counts(SCORES, truth, (1, 2, 3, 10)).tolist() == [1, 2, 4, 4]


def test_top_k_counts_of_no_sample_are_zero() -> None:
    assert top_k_counts(SCORES[:0], torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0, 0]
