"""The relational module against its naive twin."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor

from groundray.model.relation_module import CrossModalAttention, RelationalModule, place_in_image

WIDTH, POSITIONS = 12, 5
IMAGE = torch.tensor([0, 0, 0, 2, 3, 3])  # image 1 has no object


@pytest.fixture
def module() -> RelationalModule:
    torch.manual_seed(0)
    return RelationalModule(WIDTH, predicates=7, classes=4, heads=3, space=5, hidden=6).double().eval()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    phrases = torch.randn(len(IMAGE), WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    V = torch.randn(4, POSITIONS, WIDTH, dtype=torch.float64, generator=generator, requires_grad=True)
    return phrases, V


def test_the_place_of_objects_in_their_images() -> None:
    assert place_in_image(IMAGE).tolist() == [0, 1, 2, 0, 0, 1]
    assert place_in_image(IMAGE[:0]).tolist() == []


def test_attention_is_its_twin(module: RelationalModule) -> None:
    phrases, V = inputs()
    attention = module.attention
    ours = attention(phrases, V, IMAGE)
    twin = reference.cross_modal_attention(phrases, V, IMAGE, dict(attention.named_parameters()), heads=3)
    torch.testing.assert_close(ours, twin)
    sources = [phrases, V, *attention.parameters()]
    found = torch.autograd.grad(ours.square().sum(), sources)
    for gradient, expected in zip(found, torch.autograd.grad(twin.square().sum(), sources), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_scores_are_their_twins(module: RelationalModule) -> None:
    r = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    pairs = torch.tensor([[0, 1], [1, 0], [4, 5], [2, 2]])
    ours, twin = module.scores(r, pairs), reference.relation_scores(r, pairs, module.operators)
    torch.testing.assert_close(ours, twin)
    found = torch.autograd.grad(ours.square().sum(), [r, module.operators])
    expected = torch.autograd.grad(twin.square().sum(), [r, module.operators])
    for gradient, its_twin in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, its_twin)


def test_no_object_and_no_pair(module: RelationalModule) -> None:
    phrases, V = inputs()
    seen = module.attention(phrases[:0], V, IMAGE[:0])
    assert seen.shape == (0, WIDTH)
    scores = module.scores(module.space(seen), torch.zeros(0, 2, dtype=torch.int64))
    assert scores.shape == (0, 7)
    (scores.sum() + module.classifier(seen).sum()).backward()


def test_only_operators_drop_out_in_training(module: RelationalModule) -> None:
    phrases, V = inputs()
    module.train()
    torch.testing.assert_close(module.attention(phrases, V, IMAGE), module.attention(phrases, V, IMAGE))
    r, pairs = module.space(phrases), torch.tensor([[0, 1]])
    assert not torch.equal(module.scores(r, pairs), module.scores(r, pairs))


def test_the_papers_module_has_the_papers_size() -> None:
    """Stage 3 trains 21.57 M parameters: this module, BERT's last two layers, the embedder and the attention."""
    bert, embedder_and_attention = 11_813_376, 7_632_384
    with torch.device("meta"):
        module = RelationalModule(768, predicates=114, classes=55)
    own = sum(parameter.numel() for parameter in module.parameters())
    assert round((own + bert + embedder_and_attention) / 1e6, 2) == 21.57


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="5 heads of the cross-modal attention cannot share a width of 12"):
        CrossModalAttention(12, 5)
