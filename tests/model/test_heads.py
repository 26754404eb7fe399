"""The heads of the stages: shapes, pooling, initialisation and dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import torch
from conftest import SmallWorld
from transformers import BertConfig, BertForMaskedLM

from groundray import config
from groundray.model.build import build_head, build_language, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Classifier, GroundingHeads, MaskedLanguageHead, RetrievalHeads
from groundray.model.pretrained import load_masked_language_head
from groundray.model.weights import fill


@pytest.fixture
def settings(world: SmallWorld) -> config.Model:
    return config.load("demo", world.settings()).model


@pytest.fixture
def model(settings: config.Model) -> GroundedModel:
    torch.manual_seed(0)
    return build_model(settings)


def test_classifier_pools_two_by_two() -> None:
    """7 x 7 positions become 3 x 3 maxima; the last row and column are ignored."""
    classifier = Classifier(width=2, positions=49, hidden=5, classes=3)
    classifier.layers = torch.nn.Identity()
    V = torch.randn(1, 49, 2, generator=torch.Generator().manual_seed(0))
    grid = V.view(7, 7, 2)
    expected = [
        grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel].max()
        for channel in range(2)
        for row in range(3)
        for column in range(3)
    ]
    assert torch.equal(classifier(V)[0], torch.stack(expected))
    assert Classifier(width=4, positions=1, hidden=5, classes=3)(torch.zeros(2, 1, 4)).shape == (2, 3)


def test_classifier_without_hidden_layers_takes_the_maximum_over_positions() -> None:
    classifier = Classifier(width=2, positions=49, hidden=0, classes=3)
    classifier.set_dropout(0.5)  # no dropout layer: no effect
    V = torch.randn(4, 49, 2, generator=torch.Generator().manual_seed(0))
    (linear,) = classifier.layers
    expected = V.amax(dim=1) @ linear.weight.T + linear.bias
    torch.testing.assert_close(classifier(V), expected)
    torch.testing.assert_close(classifier(V.flip(1)), expected)
    assert Classifier(width=4, positions=1, hidden=0, classes=3)(torch.zeros(2, 1, 4)).shape == (2, 3)


@pytest.mark.parametrize("hidden", [0, 5])
def test_classifier_of_positions_takes_the_maximum_of_each_class(hidden: int) -> None:
    classifier = Classifier(width=2, positions=9, hidden=hidden, classes=3, input="position").eval()
    V = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [[max(classifier.layers(position)[k] for position in image) for k in range(3)] for image in V]
        torch.testing.assert_close(classifier(V), torch.tensor(expected))


@pytest.mark.parametrize("hidden", [0, 5])
def test_classes_of_positions_begin_at_the_odds_of_one_class_among_all(hidden: int) -> None:
    classifier = Classifier(width=2, positions=9, hidden=hidden, classes=18, input="position")
    assert classifier.layers[-1].bias.sigmoid().tolist() == pytest.approx([1 / 18] * 18)


def test_masked_language_head_is_tied_to_the_word_embeddings(model: GroundedModel, settings: config.Model) -> None:
    head = build_head("language", settings, model, {})
    assert isinstance(head, MaskedLanguageHead)
    embeddings = model.language.bert.embeddings.word_embeddings.weight
    assert sum(parameter.numel() for parameter in head.parameters()) == 128 * 128 + 3 * 128 + len(embeddings)
    head(torch.randn(2, 128), embeddings).square().sum().backward()
    assert embeddings.grad is not None


def test_retrieval_vectors_equal_their_naive_twins() -> None:
    torch.manual_seed(0)
    heads = RetrievalHeads(6).double().eval()
    keys = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    queries = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    ours = torch.stack([heads.images(keys), heads.texts(queries, valid)])
    everywhere = torch.ones(2, 4, dtype=torch.bool)
    twins = torch.stack(
        [
            reference.retrieval_vectors(keys, everywhere, dict(heads.image.named_parameters())),
            reference.retrieval_vectors(queries, valid, dict(heads.text.named_parameters())),
        ]
    )
    torch.testing.assert_close(ours, twins)
    sources = [keys, queries, *heads.parameters()]
    weights = torch.arange(24.0, dtype=torch.float64).view(2, 2, 6)
    found = torch.autograd.grad((ours * weights).sum(), sources)
    for gradient, expected in zip(found, torch.autograd.grad((twins * weights).sum(), sources), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_retrieval_dropout_rate_is_set() -> None:
    torch.manual_seed(0)
    heads = RetrievalHeads(64).train()
    keys, queries = torch.randn(3, 4, 64), torch.randn(3, 2, 64)
    valid = torch.ones(3, 2, dtype=torch.bool)
    for rate, same in ((0.0, True), (0.5, False)):
        heads.set_dropout(rate)
        assert torch.equal(heads.images(keys), heads.images(keys)) is same
        assert torch.equal(heads.texts(queries, valid), heads.texts(queries, valid)) is same


def test_head_weights_depend_only_on_the_seed(model: GroundedModel, settings: config.Model) -> None:
    words = {"classes": ("a", "b"), "predicates": ("c",)}
    torch.manual_seed(1)
    first = build_head("relational", settings, model, words, seed=4).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(2)
    again = build_head("relational", settings, model, words, seed=4).state_dict()
    other = build_head("relational", settings, model, words, seed=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["operators"], other["operators"])
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # building a head leaves the default generator as it was


def test_head_without_its_vocabulary_is_refused(model: GroundedModel, settings: config.Model) -> None:
    with pytest.raises(ValueError, match="the head of stage visual needs the classes"):
        build_head("visual", settings, model, {})


def test_missing_head_is_named(model: GroundedModel) -> None:
    with pytest.raises(KeyError, match="the model has no GroundingHeads"):
        model.head(GroundingHeads)


def test_weights_that_do_not_fit_are_listed() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False))
    weights = {"0.weight": torch.zeros(3, 2), "1.weight": torch.zeros(1, 4), "2.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="the file do not fit") as caught:
        fill(module, weights, "the file")
    assert str(caught.value).endswith(
        "missing 0.bias; unexpected 2.bias; other shapes 1.weight (expected 1 x 3, got 1 x 4)"
    )


def test_published_masked_language_head_is_loaded_if_there_is_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = BertConfig(vocab_size=90, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    published = BertForMaskedLM(tiny)
    torch.nn.init.normal_(published.cls.predictions.bias)
    published.save_pretrained(tmp_path / "masked")
    published.bert.save_pretrained(tmp_path / "alone")

    weights = load_masked_language_head(config.Language(name=str(tmp_path / "masked")))
    language = build_language(config.Language(name=str(tmp_path / "masked")))
    head = MaskedLanguageHead(language.bert.config)
    fill(head, weights, "the test")
    tokens = torch.tensor([[2, 10, 11, 3]])
    with torch.no_grad():
        hidden = language.eval()(tokens, tokens > 0)[0]
        ours = head(hidden, language.bert.embeddings.word_embeddings.weight)
        torch.testing.assert_close(ours, published.eval()(tokens).logits[0], rtol=1e-5, atol=1e-5)
    assert load_masked_language_head(config.Language(name=str(tmp_path / "alone"))) == {}
    assert load_masked_language_head(config.Language(name=str(tmp_path / "masked"), weights="none")) == {}
