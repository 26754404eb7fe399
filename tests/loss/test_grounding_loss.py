"""The grounding loss on one process against its naive twin."""

from __future__ import annotations

import pytest
import reference
import torch
from test_match_map import KINDS, embeddings, larger

from groundray.loss.grounding_loss import global_similarity, grounding_loss
from groundray.loss.match_map import Kind, similarity


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [None, [4], [1, 1, 1, 1], [2, 2], [3, 1], [2, 1, 1], [2, 2, 0]])
def test_grounding_loss_equals_its_naive_twin(kind: Kind, chunks: list[int] | None) -> None:
    V, W, valid = embeddings(images=4)
    loss = grounding_loss(V, W, valid, 0.1, kind, chunks)
    twin = reference.two_way_nt_xent(reference.similarity(V, W, valid, kind), 0.1)
    torch.testing.assert_close(loss, twin, rtol=1e-12, atol=0)
    for ours, expected in zip(torch.autograd.grad(loss, [V, W]), torch.autograd.grad(twin, [V, W]), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-13)


def test_grounding_loss_does_not_underflow() -> None:
    """A matched pair far behind gives a large finite loss; one far ahead gives exactly 0."""
    eye, valid = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.ones(2, 1, dtype=torch.bool)
    assert grounding_loss(eye, eye.flip(0) * 90, valid, 0.1).item() == pytest.approx(1800.0)
    assert grounding_loss(eye, eye * 90 + 1, valid, 0.1).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch_has_loss_zero(kind: Kind) -> None:
    empty = torch.zeros(0, 5, 6), torch.zeros(0, 0, 6), torch.zeros(0, 0, dtype=torch.bool)
    assert grounding_loss(*empty, 0.1, kind).item() == 0
    assert global_similarity(*empty, kind).shape == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_global_similarity_on_one_rank_is_the_similarity(kind: Kind) -> None:
    V, W, valid = larger()
    assert torch.equal(global_similarity(V, W, valid, kind), similarity(V, W, valid, kind))
