"""Match maps of words on pictures, against the map of each token by itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from conftest import SmallWorld
from PIL import Image
from search_fixtures import SearchPaths, write_model

from groundray.data.transforms import centre_crop
from groundray.image_search.errors import BadQuery
from groundray.image_search.explain import GroundingMatcher, Match, Matcher
from groundray.image_search.service import Service
from groundray.model import export
from groundray.model.heads import GroundingHeads


@pytest.fixture
def matcher(service: Service) -> Matcher:
    assert service.matcher is not None
    return service.matcher


def matched(service: Service, text: str, row: int = 0) -> Match:
    assert service.matcher is not None
    return service.matcher.match(text, service.matcher.decode(service.search.index.pictures[row]))


def test_map_equals_the_match_of_each_position(place: SearchPaths, service: Service) -> None:
    """The map of a word is the mean over its pieces: `ox` is not in the vocabulary, and becomes two pieces."""
    text = "a red ox"
    found = export.load(place.checkpoint, "grounding")
    tokens = found.tokenizer(text, return_tensors="pt")["input_ids"]
    pixels = torch.from_numpy(centre_crop(service.search.index.pictures[0], 112, 112))[None]
    with torch.no_grad():
        heads = found.model.head(GroundingHeads)
        V = heads.visual(found.model.visual(pixels))
        W = heads.language(found.model.language.bert(tokens).last_hidden_state)
    match = matched(service, text)
    assert [(word.text, word.start, word.end) for word in match.words] == [("a", 0, 1), ("red", 2, 5), ("ox", 6, 8)]
    cosine = torch.nn.functional.cosine_similarity(V[0][:, None], W[0][None], dim=-1).unflatten(0, (7, 7))
    for word, pieces in zip(match.words, ([1], [2], [3, 4]), strict=True):
        expected = cosine[..., pieces].mean(dim=-1).numpy()
        np.testing.assert_allclose(word.map, expected, atol=1e-5)
        assert word.score == pytest.approx(expected.max(), abs=1e-5)
        assert word.map[word.peak] == word.map.max()
    every = torch.ones(1, tokens.shape[1], dtype=torch.bool)
    assert match.similarity == pytest.approx(reference.similarity(V, W, every, "cosine").item(), abs=1e-5)


def test_maps_are_products_of_the_features_of_positions_and_words(matcher: Matcher, service: Service) -> None:
    text, pictures = "a red ox", [service.search.index.pictures[row] for row in range(3)]
    words = matcher.word_features(text)
    pixels = np.stack([matcher.preprocess(picture) for picture in pictures])
    products = matcher.position_features(pixels) @ words.features.T
    for picture, product in zip(pictures, products, strict=True):
        match = matcher.match(text, matcher.decode(picture))
        assert [(word.start, word.end) for word in match.words] == list(words.ranges)
        np.testing.assert_allclose(product.T, [word.map.ravel() for word in match.words], atol=1e-5)


def test_crop_of_a_wide_picture_is_its_middle(matcher: Matcher) -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 200)).save(file, "PNG")
    match = matcher.match("red", matcher.decode(file.getvalue()))
    assert match.crop == pytest.approx((0.25, 0, 0.75, 1))
    assert (match.first, match.step) == pytest.approx((4.5 / 112, 16 / 112))  # of the tiny trunk


@pytest.mark.thorough
def test_positions_of_a_map_are_as_far_from_each_other_as_the_trunks(world: SmallWorld, tmp_path: Path) -> None:
    """ResNet-18 looks at pixels 0, 32, 64 and 96 of 100."""
    pytest.importorskip("timm", reason="extra `models` is not installed")
    options = ("--model.trunk.name=timm/resnet18", "--model.image_size=100")
    matcher = GroundingMatcher.load(write_model(tmp_path, world, ["grounding"], options=options))
    assert matcher is not None
    file = io.BytesIO()
    Image.new("RGB", (120, 120)).save(file, "PNG")
    match = matcher.match("red", matcher.decode(file.getvalue()))
    assert match.words[0].map.shape == (4, 4)
    assert (match.first, match.step) == pytest.approx((0.005, 0.32))


def test_words_beyond_max_tokens_have_no_map(service: Service) -> None:
    words = matched(service, "red " * 100).words
    assert len(words) == 30  # of 32 word pieces, [CLS] and [SEP] among them
    assert words[-1].end == 29 * 4 + 3


def test_a_text_without_words_is_refused(service: Service) -> None:
    with pytest.raises(BadQuery, match="which has no word"):
        matched(service, "\u200b")
