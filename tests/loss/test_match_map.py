"""The match map and NT-Xent against their naive twins, in value and gradient."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor

from groundray.loss import match_map
from groundray.loss.grounding import grounding_loss
from groundray.loss.match_map import Kind, similarity
from groundray.loss.nt_xent import two_way_nt_xent

KINDS: list[Kind] = ["dot", "cosine"]


def embeddings(images: int = 3, captions: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """V [image 5 6], W [caption 4 6] in float64 with gradient, and masks of 1 to 4 tokens."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(images, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    W = torch.randn(captions, 4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    lengths = torch.tensor([4, 2, 1, 3])[:captions]
    return V, W, torch.arange(4) < lengths[:, None]


def test_similarity_of_a_written_out_pair() -> None:
    V = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    W = torch.tensor([[[3.0, 1.0], [0.0, 1.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True, False]])
    # token 0 matches the positions with 3 and 2, token 1 with 0 and 2; token 2 is padding
    assert similarity(V, W, valid).tolist() == [[2.5]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [1, 2**20])
def test_similarity_is_its_twin(kind: Kind, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_map, "TILE", tile)
    V, W, valid = embeddings()
    ours, twins = similarity(V, W, valid, kind), reference.similarity(V, W, valid, kind)
    torch.testing.assert_close(ours, twins, rtol=1e-12, atol=1e-12)
    weights = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for mine, its in zip(
        torch.autograd.grad((ours * weights).sum(), [V, W]),
        torch.autograd.grad((twins * weights).sum(), [V, W]),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_nt_xent_is_its_twin(temperature: float) -> None:
    S = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, twins = two_way_nt_xent(S, temperature), reference.two_way_nt_xent(S, temperature)
    torch.testing.assert_close(ours, twins, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, S)[0], torch.autograd.grad(twins, S)[0], rtol=1e-10, atol=1e-14
    )


def test_nt_xent_does_not_underflow() -> None:
    """Softmax and then log gives infinity here: the right caption is far behind."""
    S = torch.tensor([[0.0, 90.0], [90.0, 0.0]])
    assert two_way_nt_xent(S, 0.1).item() == pytest.approx(1800.0)


def test_a_caption_without_valid_token_is_like_nothing() -> None:
    V, W, valid = embeddings()
    valid = valid.clone()
    valid[1] = False
    S = similarity(V, W, valid)
    assert S[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert torch.autograd.grad(S[:, 1].sum(), W)[0].abs().sum() == 0


def test_padding_changes_nothing() -> None:
    V, W, valid = embeddings()
    longer = torch.cat([W, torch.full((4, 2, 6), 1e6, dtype=W.dtype)], dim=1)
    mask = torch.cat([valid, torch.zeros(4, 2, dtype=torch.bool)], dim=1)
    assert torch.equal(similarity(V, W, valid), similarity(V, longer, mask))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [None, 2])
def test_the_grounding_loss_is_its_twin(kind: Kind, block: int | None) -> None:
    V, W, valid = embeddings(images=4)
    loss, S = grounding_loss(V, W, valid, 0.1, kind, block)
    twin = reference.two_way_nt_xent(reference.similarity(V, W, valid, kind), 0.1)
    torch.testing.assert_close(loss, twin, rtol=1e-12, atol=0)
    assert S.shape == (4, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_has_loss_zero(kind: Kind) -> None:
    loss, S = grounding_loss(torch.zeros(0, 5, 6), torch.zeros(0, 0, 6), torch.zeros(0, 0, dtype=torch.bool), 0.1, kind)
    assert loss.item() == 0
    assert S.shape == (0, 0)


def test_match_map_of_a_pair() -> None:
    V, W, _ = embeddings()
    assert torch.equal(match_map.match_map(V[0], W[0]), V[0] @ W[0].T)
    assert match_map.match_map(V[0], W[0], "cosine").abs().max() <= 1 + 1e-12
