"""Makes derived data sets (`data/derived.py`) with an actor pool on the whole cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray.data.derived import DerivedDataset, Encoder, make_parts, tasks
from groundray.runtime.data.ray_stream import quiet_context
from groundray.training.allocator import ENVIRONMENT, keep_freed_memory

MakeEncoder = Callable[[Any, str], Encoder[Any]]  # takes the model and its device
Work = Mapping[str, tuple[DerivedDataset, MakeEncoder]]


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


def make_on_cluster(work: Work, model: Any, use_gpu: bool) -> Iterator[tuple[str, int]]:
    """Make the missing parts of derived data sets. Yields (name in `work`, number of rows) of each finished task.

    Args:
        work: by name, what to make, and the function that makes its encoder from the model and its device.
        model: a model with `to(device)`.
        use_gpu: give each actor a GPU, if the cluster has any.

    Raises:
        ValueError: a row cannot be read or encoded.
    """
    available = ray.cluster_resources()
    cpus, gpus = int(available.get("CPU", 1)), int(available.get("GPU", 0)) if use_gpu else 0
    rows = [
        {"what": what, "group": group, "names": names}
        for what, (spec, _) in work.items()
        for group, names in tasks(spec, gpus or cpus)
    ]
    if not rows:
        return
    actors = min(len(rows), gpus or cpus)
    threads = max(1, cpus // actors)
    remote: Any = _make_on_cluster
    for result in remote.remote(rows, dict(work), ray.put(model), actors, threads, gpus > 0):
        row: Any = ray.get(result)
        if row["error"]:
            raise ValueError(row["error"])
        yield row["what"], int(row["rows"])


@ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")
def _make_on_cluster(
    rows: list[dict[str, Any]], work: Work, model: Any, actors: int, threads: int, gpu: bool
) -> Iterator[dict[str, Any]]:
    """Run the pass in a task of the cluster: in the driver, Ray's core and Ray Data would print their progress."""
    with ray.data.DataContext.current(quiet_context()):
        yield from (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(
                cast(Any, PartMaker),
                fn_constructor_args=(work, ray.put(model), threads),
                compute=ActorPoolStrategy(size=actors),
                num_cpus=threads if gpu else 1,
                num_gpus=1 if gpu else None,
                runtime_env={"env_vars": ENVIRONMENT},
            )
            .iter_rows()
        )
