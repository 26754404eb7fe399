"""A vocabulary encoded on Ray: the same vectors, in the same order."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from analysis.models import WORDS, bert, word_pieces

from groundray.analysis.inputs.embedding import Embedder, Options
from groundray.runtime.data import embedding_tasks


@pytest.mark.thorough
@pytest.mark.ray
def test_vectors_are_those_of_one_process(ray_cluster: None) -> None:
    words = [word for word in WORDS if word != ","]
    texts = [" ".join(words[place % 13] for place in range(start, start + start % 5 + 1)) for start in range(2000)]
    embedder = Embedder("model", bert(), word_pieces(), Options(templates=("a photo of a {}", "{} and the bear")))
    heard: list[tuple[int, int]] = []
    found = embedder.embed(texts, lambda done, of: heard.append((done, of)), embedding_tasks.encode)
    # an actor adds up on one thread, this process on several
    np.testing.assert_allclose(found, embedder.embed(texts), rtol=1e-4, atol=1e-5)
    assert len(heard) > 4
    assert heard[-1][0] == heard[-1][1]


@pytest.mark.ray
def test_texts_that_cannot_be_embedded_are_refused_before_any_work(ray_cluster: None) -> None:
    embedder = Embedder("model", bert(), word_pieces())
    with pytest.raises(ValueError, match="got others for 'giraffe'"):
        embedder.embed(["zebra", "giraffe"], encode=embedding_tasks.encode)


@pytest.mark.ray
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(ray_cluster: None) -> None:
    embedder = Embedder("model", bert(), word_pieces())
    with pytest.raises(ValueError, match="expected a cluster with a GPU to embed on"):
        embedder.embed(["zebra"], encode=partial(embedding_tasks.encode, use_gpu=True))


@pytest.mark.parametrize(("gpus", "factors"), [([0], "ieee"), ([], None)])
def test_an_actor_with_a_gpu_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, gpus: list[int], factors: str | None
) -> None:
    seen: list[Any] = []

    class Model:
        def to(self, device: str) -> Model:
            seen.append(device)
            return self

        def encode(self, batch: str) -> np.ndarray:
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return np.zeros(3, np.float32)

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setattr(embedding_tasks.ray, "get", lambda given: given)
    monkeypatch.setattr(embedding_tasks.ray, "get_gpu_ids", lambda: gpus)
    outside = torch.backends.cuda.matmul.fp32_precision
    embedding_tasks.EmbeddingActor((Model(), ["batch"]))({"batch": 0})
    assert seen == ["cuda" if gpus else "cpu", factors or outside]
    assert torch.backends.cuda.matmul.fp32_precision == outside
