"""Embeds a large vocabulary with an actor pool on the whole cluster.

The batches are those of `Embedder.embed`. The vectors are the same up to rounding: another number of threads adds up in
another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray import arithmetic
from groundray.analysis.inputs.embedding import Embedder, Vectors
from groundray.runtime.data.ray_stream import quiet_context
from groundray.runtime.nodes import accepting_nodes, places


class EmbeddingActor:
    """An actor that embeds batches with its own copy of the model, on a GPU if it has one."""

    def __init__(self, embedder_and_batches: Any):
        embedder, self._batches = ray.get(embedder_and_batches)
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        self._embedder: Embedder = embedder.to(self._device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # bytes, because batches differ in length and Ray Data would look for a common shape
        with arithmetic.using("float32", self._device):
            return {"vectors": self._embedder.encode(self._batches[row["batch"]]).tobytes()}


def embed(
    embedder: Embedder,
    texts: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, of: None,
    use_gpu: bool = False,
) -> Vectors:
    """Return the vector of each text, computed on the connected Ray cluster.

    Args:
        progress: called after each batch with the number of word pieces that are done, and of all.
        use_gpu: one actor for each GPU of the cluster, instead of one for each CPU.

    Raises:
        ValueError: see `Embedder.embed`; or the cluster has no GPU.
    """
    batches = embedder.batches(texts)
    cpus, gpus = (0, 1) if use_gpu else (1, 0)
    actors = places(accepting_nodes(), cpus, gpus)
    if not actors:
        raise ValueError(
            f"expected a cluster with a {'GPU' if use_gpu else 'CPU'} to embed on, got {ray.cluster_resources()}"
        )
    total, done = sum(batch.tokens.size for batch in batches), 0
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

        def encoded() -> Any:
            nonlocal done
            for batch, row in zip(batches, rows.iter_rows(), strict=True):
                yield np.frombuffer(row["vectors"], dtype=np.float32).reshape(len(batch.texts), -1)
                done += batch.tokens.size
                progress(done, total)

        return embedder.gathered(texts, batches, encoded())
