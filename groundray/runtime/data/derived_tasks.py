"""Data sets that are made of others in parts (`data/derived.py`), by an actor pool of the whole cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, cast

import ray
import ray.data
from ray.data import ActorPoolStrategy

from groundray.data.derived import Parts
from groundray.runtime.data.ray_stream import quiet_context
from groundray.training.allocator import ENVIRONMENT, keep_freed_memory


class Make(Protocol):
    """Makes some parts of a row group with a model; the number of rows that it took."""

    def __call__(self, one: Any, group: int, names: list[str], model: Any, device: str, threads: int, /) -> int: ...


class Maker:
    """An actor with a model of its own, on a GPU where it has one."""

    def __init__(self, wanted: Mapping[str, Parts], make: Make, model: Any, threads: int):
        keep_freed_memory()
        self._wanted, self._make, self._threads = wanted, make, threads
        self._device = "cuda" if ray.get_gpu_ids() else "cpu"
        found: Any = ray.get(model)
        self._model = found.to(self._device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        one, group, names = self._wanted[row["what"]], int(row["group"]), list(row["names"])
        try:
            rows = self._make(one, group, names, self._model, self._device, self._threads)
            return {"what": row["what"], "rows": rows, "error": ""}
        except (OSError, ValueError) as error:  # Ray Data would tell of it in forty lines
            return {"what": row["what"], "rows": 0, "error": str(error)}


def make_parts(wanted: Mapping[str, Parts], make: Make, model: Any, use_gpu: bool) -> Iterator[tuple[str, int]]:
    """Make the parts of some data sets that are missing; which data set and how many rows, as they are made.

    Args:
        model: what `make` takes, with `to(device)`.
        use_gpu: an actor has a GPU, where the cluster has any.

    Raises:
        ValueError: a row cannot be read.
    """
    has = ray.cluster_resources()
    cpus, gpus = int(has.get("CPU", 1)), int(has.get("GPU", 0)) if use_gpu else 0
    tasks = [
        {"what": what, "group": group, "names": names}
        for what, one in wanted.items()
        for group, names in one.work(gpus or cpus)
    ]
    if not tasks:
        return
    actors = min(len(tasks), gpus or cpus)
    threads = max(1, cpus // actors)
    remote: Any = _pass
    for told in remote.remote(tasks, dict(wanted), make, ray.put(model), actors, threads, gpus > 0):
        row: Any = ray.get(told)
        if row["error"]:
            raise ValueError(row["error"])
        yield row["what"], int(row["rows"])


@ray.remote(num_cpus=0, max_retries=0, num_returns="streaming")
def _pass(
    tasks: list[dict[str, Any]],
    wanted: dict[str, Parts],
    make: Make,
    model: Any,
    actors: int,
    threads: int,
    gpu: bool,
) -> Iterator[dict[str, Any]]:
    """The pass itself, on the cluster: a driver would show what Ray's core and Ray Data tell of it as they go."""
    with ray.data.DataContext.current(quiet_context()):
        yield from (
            ray.data.from_items(tasks, override_num_blocks=len(tasks))
            .map(
                cast(Any, Maker),
                fn_constructor_args=(wanted, make, ray.put(model), threads),
                compute=ActorPoolStrategy(size=actors),
                num_cpus=threads if gpu else 1,
                num_gpus=1 if gpu else None,
                runtime_env={"env_vars": ENVIRONMENT},
            )
            .iter_rows()
        )
