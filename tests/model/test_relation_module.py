"""The relational module against its naive twin."""

from __future__ import annotations

import pytest
import reference
import torch
from torch import Tensor, optim
from torch.nn import functional as F

from groundray import config
from groundray.config import OperatorInitialization
from groundray.model.relation_module import CrossModalAttention, RelationalModule, index_in_image

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


def test_index_of_objects_in_their_images() -> None:
    assert index_in_image(IMAGE).tolist() == [0, 1, 2, 0, 0, 1]
    assert index_in_image(IMAGE[:0]).tolist() == []


def test_attention_equals_its_naive_twin(module: RelationalModule) -> None:
    phrases, V = inputs()
    attention = module.attention
    ours = attention(phrases, V, IMAGE)
    twin = reference.cross_modal_attention(phrases, V, IMAGE, dict(attention.named_parameters()), heads=3)
    torch.testing.assert_close(ours, twin)
    sources = [phrases, V, *attention.parameters()]
    found = torch.autograd.grad(ours.square().sum(), sources)
    for gradient, expected in zip(found, torch.autograd.grad(twin.square().sum(), sources), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_scores_equal_their_naive_twins(module: RelationalModule) -> None:
    r = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    pairs = torch.tensor([[0, 1], [1, 0], [4, 5], [2, 2]])
    ours, twin = module.scores(r, pairs), reference.relation_scores(r, pairs, module.operators)
    torch.testing.assert_close(ours, twin)
    found = torch.autograd.grad(ours.square().sum(), [r, module.operators])
    expected = torch.autograd.grad(twin.square().sum(), [r, module.operators])
    for gradient, its_twin in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, its_twin)


def test_module_accepts_no_objects_and_no_pairs(module: RelationalModule) -> None:
    phrases, V = inputs()
    objects = module.attention(phrases[:0], V, IMAGE[:0])
    assert objects.shape == (0, WIDTH)
    scores = module.scores(module.space(objects), torch.zeros(0, 2, dtype=torch.int64))
    assert scores.shape == (0, 7)
    (scores.sum() + module.classifier(objects).sum()).backward()


def test_dropout_applies_only_to_operators(module: RelationalModule) -> None:
    phrases, V = inputs()
    module.train()
    torch.testing.assert_close(module.attention(phrases, V, IMAGE), module.attention(phrases, V, IMAGE))
    r, pairs = module.space(phrases), torch.tensor([[0, 1]])
    assert not torch.equal(module.scores(r, pairs), module.scores(r, pairs))


def test_module_of_the_paper_has_the_papers_parameter_count() -> None:
    """Stage 3 trains 21.57 M parameters: this module, BERT's last two layers, the embedder and the attention."""
    bert, embedder_and_attention = 11_813_376, 7_632_384
    with torch.device("meta"):
        module = RelationalModule(768, predicates=114, classes=55)
    own = sum(parameter.numel() for parameter in module.parameters())
    assert round((own + bert + embedder_and_attention) / 1e6, 2) == 21.57


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="divides the width 12, got 5"):
        CrossModalAttention(12, 5)


def trained_operators(initialization: OperatorInitialization, steps: int) -> tuple[float, float]:
    """Train only the operators, by the paper's optimizer, on as many pairs as predicates; returns the mean cosine
    of the operators with their start, and the fraction of pairs whose predicate has the highest score."""
    stage = config.load("paper").stage("relational")
    torch.manual_seed(0)
    module = RelationalModule(8, predicates=20, classes=2, heads=2, hidden=2, operators=initialization).train()
    r = 8 * F.normalize(torch.randn(40, 32), dim=1)
    pairs, predicates = torch.arange(40).view(20, 2), torch.arange(20)
    start = module.operators.detach().clone()
    settings = stage.optimizer
    optimizer = optim.Adam([module.operators], lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
    for _ in range(steps):
        F.cross_entropy(module.scores(r, pairs) / stage.temperature, predicates).backward()
        optimizer.step()
        optimizer.zero_grad()
    module.eval()
    correct = (module.scores(r, pairs).argmax(dim=1) == predicates).float().mean().item()
    return F.cosine_similarity(start.flatten(1), module.operators.detach().flatten(1)).mean().item(), correct


def test_operators_move_at_the_papers_learning_rate() -> None:
    """Adam changes an entry by at most about its learning rate a step. 600 steps of 1e-5 are a fifth of Xavier's
    size here, and nothing of size 1; scores depend only on an operator's direction."""
    cosine, correct = trained_operators("xavier", 600)
    assert cosine < 0.995
    assert correct > 0.9
    cosine, correct = trained_operators("normal", 600)
    assert cosine > 0.9999
    assert correct < 0.3
