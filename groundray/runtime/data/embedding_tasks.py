"""The vectors of a large vocabulary, made by an actor pool of the whole cluster.

The batches are those of `analysis.embedding.Embedder.embed`, so the vectors are the same but for the order in which
another number of threads adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray.analysis.inputs.embedding import Embedder, Vectors
from groundray.runtime.data.ray_stream import quiet_context


class EmbeddingActor:
    """Embeds batches: an actor with a model of its own, on a GPU where it has one."""

    def __init__(self, work: Any):
        embedder, self._batches = ray.get(work)
        self._embedder: Embedder = embedder.to("cuda" if ray.get_gpu_ids() else "cpu")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        # as bytes: batches differ in length, and Ray Data would look for a common shape
        return {"vectors": self._embedder.encode(self._batches[row["batch"]]).tobytes()}


def embed(
    embedder: Embedder,
    texts: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, of: None,
    use_gpu: bool = False,
) -> Vectors:
    """The vector of each text, on the Ray cluster that this process is connected to.

    Args:
        progress: hears after each batch how many word pieces of how many are done.
        use_gpu: an actor a GPU of the cluster; else an actor a CPU.

    Raises:
        ValueError: as `Embedder.embed`; or the cluster has no GPU.
    """
    batches = embedder.batches(texts)
    has = ray.cluster_resources()
    room = int(has.get("GPU" if use_gpu else "CPU", 0))
    if not room:
        raise ValueError(f"expected a cluster with a {'GPU' if use_gpu else 'CPU'} to embed on, got {has}")
    total, done = sum(batch.tokens.size for batch in batches), 0
    context = quiet_context()
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context):
        made = ray.data.from_items(
            [{"batch": place} for place in range(len(batches))], override_num_blocks=len(batches)
        ).map(
            cast(Any, EmbeddingActor),
            fn_constructor_args=(ray.put((embedder, batches)),),
            compute=ActorPoolStrategy(size=min(room, len(batches))),
            num_cpus=0 if use_gpu else 1,
            num_gpus=1 if use_gpu else None,
        )

        def encoded() -> Any:
            nonlocal done
            for batch, row in zip(batches, made.iter_rows(), strict=True):
                yield np.frombuffer(row["vectors"], dtype=np.float32).reshape(len(batch.texts), -1)
                done += batch.tokens.size
                progress(done, total)

        return embedder.gathered(texts, batches, encoded())
