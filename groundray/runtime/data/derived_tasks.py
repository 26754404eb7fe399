"""Makes derived data sets (`data/derived.py`) with an actor pool on the whole cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray.data.derived import DerivedDataset, Encoder, make_parts, tasks
from groundray.runtime.data.scheduling import quiet_context
from groundray.runtime.nodes import Node, accepting_nodes, places
from groundray.training.allocator import environment, keep_freed_memory

MakeEncoder = Callable[[Any, str], Encoder[Any]]  # takes the model and its device
Work = Mapping[str, tuple[DerivedDataset, MakeEncoder]]


@dataclass(frozen=True)
class Pool:
    """A number of equal actors, each of which fits on every node that has what it needs.

    Attributes:
        cpus: CPUs that Ray reserves for an actor.
        threads: decoding threads of an actor, at most.
        gpus: GPUs of an actor, 0 or 1.
    """

    actors: int
    cpus: float
    threads: int
    gpus: int

    @staticmethod
    def of(nodes: Sequence[Node], use_gpu: bool, gpu_type: str | None = None) -> Pool:
        """Return the pool that uses all of the nodes: an actor for each GPU, or for each CPU if there is no GPU.

        With GPUs, an actor gets the CPUs that there are for a GPU where they are fewest. With more it would wait
        forever for a node with that GPU, as it would with those of nodes without one.
        """
        with_gpu = [node for node in nodes if use_gpu and node.places(0, 1, gpu_type)]
        per_gpu = [node.cpus / int(node.gpus) for node in with_gpu]
        if per_gpu:
            cpus = int(min(per_gpu)) or math.floor(100 * min(per_gpu)) / 100
            return Pool(places(with_gpu, cpus, 1), cpus, max(1, int(cpus)), 1)
        whole = [int(node.cpus) for node in nodes if node.cpus >= 1] or [1]  # of none, Ray may start a node
        return Pool(sum(whole), 1, min(whole), 0)

    def limited(self, tasks: int) -> Pool:
        """Return the pool with no more actors than tasks. On CPUs, those of the other actors decode."""
        actors = min(self.actors, tasks)
        threads = self.threads if self.gpus else min(self.threads, self.actors // actors)
        return replace(self, actors=actors, threads=threads)


class PartMaker:
    """An actor that makes parts with its own copy of the model, on a GPU if it has one."""

    def __init__(self, work: Work, model: Any, threads: int):
        keep_freed_memory()
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        loaded: Any = ray.get(model)
        on_device = loaded.to(device)
        self._work = {what: (spec, make_encoder(on_device, device)) for what, (spec, make_encoder) in work.items()}
        self._threads = threads

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        spec, encoder = self._work[row["what"]]
        try:
            rows = make_parts(spec, int(row["group"]), list(row["names"]), encoder, self._threads)
            return {"what": row["what"], "rows": rows, "error": ""}
        except (OSError, ValueError) as error:  # as a value: Ray Data would print forty lines
            return {"what": row["what"], "rows": 0, "error": str(error)}


def make_on_cluster(work: Work, model: Any, use_gpu: bool, gpu_type: str | None = None) -> Iterator[tuple[str, int]]:
    """Make the missing parts of derived data sets. Yields (name in `work`, number of rows) of each finished task.

    Args:
        work: by name, what to make, and the function that makes its encoder from the model and its device.
        model: a model with `to(device)`.
        use_gpu: give each actor a GPU, if the cluster has any.
        gpu_type: type of these GPUs, by Ray's name; None for any.

    Raises:
        ValueError: a row cannot be read or encoded.
    """
    pool = Pool.of(accepting_nodes(), use_gpu, gpu_type)
    rows = [
        {"what": what, "group": group, "names": names}
        for what, (spec, _) in work.items()
        for group, names in tasks(spec, pool.actors)
    ]
    if not rows:
        return
    remote: Any = _make_on_cluster
    needs = {"accelerator_type": gpu_type} if pool.gpus and gpu_type else {}
    for result in remote.remote(rows, dict(work), ray.put(model), pool.limited(len(rows)), needs):
        row: Any = ray.get(result)
        if row["error"]:
            raise ValueError(row["error"])
        yield row["what"], int(row["rows"])


@ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")
def _make_on_cluster(
    rows: list[dict[str, Any]], work: Work, model: Any, pool: Pool, needs: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Run the pass in a task of the cluster: in the driver, Ray's core and Ray Data would print their progress."""
    with ray.data.DataContext.current(quiet_context()):
        yield from (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(
                cast(Any, PartMaker),
                fn_constructor_args=(work, ray.put(model), pool.threads),
                compute=ActorPoolStrategy(size=pool.actors),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
                runtime_env={"env_vars": environment(pool.gpus > 0)},
                **needs,
            )
            .iter_rows()
        )
