"""Image-grounded similarity, against the match map of one image and one text at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import reference
import torch
from conftest import SmallWorld

from groundray import config
from groundray.analysis.measures.image_grounded_similarity import (
    WordsThroughImages,
    similarities,
    texts_at_once,
)
from groundray.data.batches import CaptionBatch
from groundray.data.tokenization import WordPieceTokenizer
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.model.pretrained import load_tokenizer
from groundray.training import preflight, progression

TEXTS = ("circle", "striped circle", "a red heart above a small star")


@pytest.fixture(scope="module")
def grounded(world: SmallWorld) -> tuple[GroundedModel, WordPieceTokenizer]:
    settings = config.load("demo", world.settings())
    model, heads = progression.initial_model(settings)
    progression.attach_heads(preflight.check(settings).stages[0], model, heads, settings)
    tokenizer = load_tokenizer(settings.model.language)
    return model.eval(), WordPieceTokenizer(tokenizer.backend_tokenizer.to_str(), 12)


def batches(*sizes: int) -> list[CaptionBatch]:
    """Batches of noise, whose captions are not read."""
    draw = np.random.default_rng(3)
    return [
        CaptionBatch.of(
            [str(number) for number in range(size)],
            draw.integers(0, 256, (size, 3, 112, 112), dtype=np.uint8),
            np.zeros((size, 2), dtype=np.int32),
            np.full(size, 2, dtype=np.int32),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("special_tokens", [True, False])
@torch.no_grad()
def test_each_number_is_a_match_maps(grounded: tuple[GroundedModel, WordPieceTokenizer], special_tokens: bool) -> None:
    model, tokenizer = grounded
    found = similarities(model, tokenizer, TEXTS, batches(3, 0, 2), "cosine", special_tokens)
    heads = model.head(GroundingHeads)
    V = torch.cat([heads.visual(model.visual(batch.images)) for batch in batches(3, 2)])
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([tokenizer.backend.encode(text).ids])
        W = heads.language(model.language(ids, torch.ones_like(ids, dtype=torch.bool)))
        W = W if special_tokens else W[:, 1:-1]
        S = reference.similarity(V, W, torch.ones(W.shape[:2], dtype=torch.bool), "cosine")[:, 0]
        np.testing.assert_allclose(row, S, atol=1e-5)


def test_one_image_says_nothing(grounded: tuple[GroundedModel, WordPieceTokenizer]) -> None:
    model, tokenizer = grounded
    with pytest.raises(ValueError, match="expected at least 2 images, got 1"):
        similarities(model, tokenizer, TEXTS, batches(1), "dot", True)


@pytest.mark.parametrize("at_once", [1, 4, 7, 13, 100])
def test_words_in_parts_are_those_of_one_table(at_once: int) -> None:
    """Three phrases and ten words, each with two numbers that tell which it is."""
    phrases, words = ["100", "101", "102"], [str(number) for number in range(10)]
    table = np.array([[float(text), float(text) / 7] for text in (*words, *phrases)])
    passes: list[int] = []

    def similarities_of(texts: Sequence[str]) -> np.ndarray:
        passes.append(len(texts))
        return table[[(*words, *phrases).index(text) for text in texts]]

    rows = WordsThroughImages(similarities_of, phrases, words, at_once)
    assert np.array_equal(rows.of_phrases, table[10:])
    for numbers in ([7, 0, 3], [0, 1, 2], [3, 4, 5], [6, 7], [8, 9]):
        assert np.array_equal(rows[np.array(numbers)], table[numbers])
    assert max(passes) <= at_once
    if at_once >= 13:
        assert passes == [13]


def test_texts_at_once_hold_128_mb() -> None:
    assert texts_at_once(images=5_000, width=768) == 2**25 // 5_000
    assert texts_at_once(images=200, width=768) == 2**25 // (4 * 768)
    assert texts_at_once(images=2**30, width=768) == 1
