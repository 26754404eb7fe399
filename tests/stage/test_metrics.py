"""Ranks, recall, top-k counts and average precision of scores that are written out."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from sklearn.metrics import average_precision_score

from groundray.stage.metrics import MatchedRanks, average_precisions, ranks, recalls, top_k_counts

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


def test_a_score_that_is_not_a_number_has_the_last_rank_and_is_before_all_others() -> None:
    scores = torch.tensor([[torch.nan, 2.0, 1.0], [3.0, torch.nan, 4.0]])
    assert ranks(scores, torch.tensor([0, 0])).tolist() == [3, 3]
    assert ranks(scores, torch.tensor([1, 2])).tolist() == [2, 2]


def test_recalls_of_both_directions() -> None:
    metrics = recalls(MatchedRanks(torch.tensor([1, 2, 2, 1]), torch.tensor([1, 3, 2])), at=(1, 2))
    assert metrics["image_to_text/recall@1"] == 1 / 3
    assert metrics["image_to_text/recall@2"] == 2 / 3
    assert metrics["text_to_image/recall@2"] == 1.0
    assert metrics["image_to_text/mean_rank"] == 2.0
    assert metrics["text_to_image/median_rank"] == 1.5


@pytest.mark.parametrize("samples", [1, 10, 37])
def test_recalls_are_those_of_the_whole_matrix(samples: int) -> None:
    scores = torch.randint(0, 50, (samples, samples), generator=torch.Generator().manual_seed(0)) / 4
    own = torch.arange(samples)
    ours = recalls(MatchedRanks(ranks(scores.T, own), ranks(scores, own)))
    assert ours == pytest.approx(reference.recalls(scores), rel=1e-15)


def test_top_k_counts_for_each_k() -> None:
    truth = torch.tensor([0, 1, 2, 0])  # ranks 1, 2, 3, and a tie of three that has rank 3
    assert top_k_counts(SCORES, truth, (1, 2, 3, 10)).tolist() == [1, 2, 4, 4]


def test_top_k_counts_of_no_sample_are_zero() -> None:
    assert top_k_counts(SCORES[:0], torch.zeros(0, dtype=torch.int64)).tolist() == [0, 0, 0]


def test_average_precision_of_ranked_samples() -> None:
    scores = torch.tensor([[0.9, 0.9, 0.1], [0.8, 0.8, 0.2], [0.7, 0.7, 0.3], [0.6, 0.6, 0.4]])
    is_true = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)
    first, second, never = average_precisions(scores, is_true).tolist()
    assert first == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert second == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert math.isnan(never)


@pytest.mark.parametrize("score", [0.0, float("nan"), -float("inf")])
def test_equal_scores_have_the_precision_of_chance(score: float) -> None:
    is_true = torch.tensor([[1], [0], [0], [1], [0]], dtype=torch.bool)
    assert average_precisions(torch.full((5, 1), score), is_true).tolist() == [pytest.approx(2 / 5)]


def test_a_score_that_is_not_a_number_is_the_lowest() -> None:
    scores = torch.tensor([[float("nan")], [-1.0], [2.0]])
    assert average_precisions(scores, torch.tensor([[True], [False], [False]])).tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precisions_are_the_naive_twins_with_ties_and_without(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (60, 4), generator=generator) / 7
    is_true = torch.rand(60, 4, generator=generator) < torch.tensor([0.03, 0.2, 0.5, 1.0])
    is_true[0] = True
    found = average_precisions(scores, is_true).tolist()
    twins = [
        reference.average_precision(*columns) for columns in zip(scores.T.tolist(), is_true.T.tolist(), strict=True)
    ]
    assert found == pytest.approx(twins, rel=1e-12)
    assert found == pytest.approx([average_precision_score(is_true[:, k], scores[:, k]) for k in range(4)], rel=1e-12)
