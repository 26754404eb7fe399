"""Ranks and recall of written-out similarities."""

from __future__ import annotations

import torch

from groundray.stage.recall import ranks, recalls

# rows are images, columns captions; the diagonal belongs together
S = torch.tensor(
    [
        [0.9, 0.1, 0.2],
        [0.8, 0.5, 0.7],
        [0.1, 0.6, 0.3],
    ]
)


def test_ranks_count_the_better_candidates() -> None:
    assert ranks(S).tolist() == [1, 3, 2]  # image to text
    assert ranks(S.T).tolist() == [1, 2, 2]  # text to image


def test_ties_count_against_the_query() -> None:
    assert ranks(torch.zeros(4, 4)).tolist() == [4, 4, 4, 4]


def test_recalls_of_both_directions() -> None:
    found = recalls(S, at=(1, 2))
    assert found["image_to_text/recall@1"] == 1 / 3
    assert found["image_to_text/recall@2"] == 2 / 3
    assert found["text_to_image/recall@2"] == 1.0
    assert found["image_to_text/mean_rank"] == 2.0
    assert found["text_to_image/median_rank"] == 2.0
