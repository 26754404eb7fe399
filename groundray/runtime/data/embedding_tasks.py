"""Encodes a large vocabulary with an actor pool on the whole cluster.

The batches are those of `Embedder.embed`. The vectors are the same up to rounding: another number of threads adds up in
another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray import arithmetic
from groundray.analysis.inputs.embedding import Batch, Embedder
from groundray.analysis.inputs.text_model import Vectors
from groundray.runtime.data.scheduling import quiet_context
from groundray.runtime.nodes import accepting_nodes, places


class EmbeddingActor:
    """An actor that encodes batches with its own copy of the model, on a GPU if it has one."""

    def __init__(self, embedder_and_batches: Any):
        embedder, self._batches = ray.get(embedder_and_batches)
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._embedder: Embedder = embedder.to(self._device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # bytes, because batches differ in length and Ray Data would look for a common shape
        with arithmetic.using("float32", self._device):
            return {"vectors": self._embedder.encode(self._batches[row["batch"]]).tobytes()}


def encode(embedder: Embedder, batches: Sequence[Batch], use_gpu: bool = False) -> Iterator[Vectors]:
    """Yield the vectors of each batch, in order, computed on the connected Ray cluster.

    Args:
        use_gpu: one actor for each GPU of the cluster, instead of one for each CPU.

    Raises:
        ValueError: the cluster has no GPU.
    """
    cpus, gpus = (0, 1) if use_gpu else (1, 0)
    actors = places(accepting_nodes(), cpus, gpus)
    if not actors:
        raise ValueError(
            f"expected a cluster with a {'GPU' if use_gpu else 'CPU'} to embed on, got {ray.cluster_resources()}"
        )
    context = quiet_context()
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context):
        rows = ray.data.from_items(
            [{"batch": number} for number in range(len(batches))], override_num_blocks=len(batches)
        ).map(
            cast(Any, EmbeddingActor),
            fn_constructor_args=(ray.put((embedder, batches)),),
            compute=ActorPoolStrategy(size=min(actors, len(batches))),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        for batch, row in zip(batches, rows.iter_rows(), strict=True):
            yield np.frombuffer(row["vectors"], dtype=np.float32).reshape(len(batch.texts), -1)
