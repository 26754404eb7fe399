"""Shared code of the contrastive stages: counted tokens, empty batches, concatenation, and validation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import reference
import torch
from conftest import SmallWorld
from pretend_gpu import PretendGpu
from torch import Tensor

from groundray import config
from groundray.arithmetic import Precision, autocast, weight_type
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Step
from groundray.loss.grounding_loss import grounding_loss
from groundray.loss.match_map import Kind
from groundray.model.build import build_head, build_model
from groundray.stage.contrastive import (
    Encoded,
    concatenate,
    encode_for_match_map,
    encode_for_retrieval,
    validate,
)
from groundray.stage.protocol import Metrics


def chunk(samples: int, tokens: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    V = torch.randn(samples, 5, 6, generator=generator)
    W = torch.randn(samples, tokens, 6, generator=generator)
    return Encoded(V, W, torch.ones(samples, tokens, dtype=torch.bool))


def test_concatenated_captions_are_padded_to_the_longest() -> None:
    first, second = chunk(2, 3, seed=1), chunk(1, 4, seed=2)
    V, W, valid, *_ = concatenate([first, second])
    assert (V.shape, W.shape) == ((3, 5, 6), (3, 4, 6))
    assert torch.equal(W[:2, :3], first.W)
    assert valid.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("precision", ["bf16", "float32", "float64"])
def test_an_empty_batch_is_encoded_in_the_type_of_others(world: SmallWorld, precision: Precision) -> None:
    """Ranks exchange embeddings of one type, and one may have no samples of the last batch of a validation."""
    settings = config.load("demo", world.settings()).model
    model = build_model(settings).to(weight_type(precision))
    words = {"predicates": ("left of",), "classes": ("heart", "ring")}
    for stage in ("grounding", "relational", "retrieval"):
        model.heads[stage] = build_head(stage, settings, model, words)

    def batch(count: int) -> CaptionBatch:
        pixels = np.zeros((count, 3, settings.image_size, settings.image_size), np.uint8)
        return CaptionBatch.of(["a"] * count, pixels, np.ones((count, 6), np.int32), np.full(count, 4))

    for encode in (encode_for_match_map, encode_for_retrieval):
        with autocast(precision, "cpu"), torch.no_grad():
            some, none = (encode(model, batch(count), special_tokens=False) for count in (2, 0))
        assert (some.V.dtype, some.W.dtype) == (none.V.dtype, none.W.dtype)
        assert (len(none.V), len(none.W), some.V.shape[1:]) == (0, 0, none.V.shape[1:])
        together = concatenate([none, some])
        assert torch.equal(together.W, some.W)
        assert together.W.dtype == some.W.dtype


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_validation_loss_is_the_training_loss_averaged_over_samples(kind: Kind) -> None:
    """Two batches of chunks; the second batch is short and one of its chunks is empty."""
    chunks = [[chunk(4, 3, seed=1), chunk(4, 5, seed=2)], [chunk(3, 4, seed=3), chunk(0, 1, seed=4)]]
    steps = [
        Step(epoch=0, step=number, ends_epoch=number == 1, chunks=tuple(enumerate(batch)))
        for number, batch in enumerate(chunks)
    ]

    def loss(encoded: list[Encoded]) -> tuple[Tensor, Metrics]:
        return grounding_loss(*concatenate(encoded)[:3], 0.2, kind, [len(chunk.V) for chunk in encoded]), {}

    def encode(encoded: Any) -> Encoded:
        return encoded

    metrics = validate(encode, steps, loss, kind)
    batches = [concatenate(batch) for batch in chunks]
    twins = [reference.two_way_nt_xent(reference.similarity(*batch[:3], kind), 0.2).item() for batch in batches]
    assert metrics["loss"] == pytest.approx((8 * twins[0] + 3 * twins[1]) / 11, rel=1e-5)
    S = reference.similarity(*concatenate(batches)[:3], kind)
    assert metrics == {"loss": metrics["loss"], **reference.recalls(S)}


def test_validation_keeps_embeddings_on_the_host_and_reads_its_losses_once() -> None:
    """Otherwise the embeddings of a large validation set fill a GPU."""

    def encode(number: int) -> Encoded:
        V, W, valid, *_ = chunk(3, 4, number)
        return Encoded(V.to("cuda", non_blocking=True), W.to("cuda", non_blocking=True), valid)

    steps = [Step(0, number, number == 3, ((0, number),)) for number in range(4)]
    with PretendGpu() as gpu:
        metrics = validate(encode, steps, lambda encoded: (grounding_loss(*concatenate(encoded)[:3], 0.2), {}), "dot")
    waits = Counter({line: count for line, count in gpu.waits.items() if "contrastive.py" in line})
    copies = sum(count for line, count in waits.items() if line.startswith("blocking copy to the host"))
    assert (copies, waits.total() - copies) == (2 * len(steps), 1)  # images and captions
    on_host = [chunk(3, 4, number) for number in range(4)]
    S = reference.similarity(*concatenate(on_host)[:3], "dot")
    assert metrics["image_to_text/recall@1"] == reference.recalls(S)["image_to_text/recall@1"]
