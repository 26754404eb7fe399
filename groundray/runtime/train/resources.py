"""What a training run wants of a cluster, and what there is."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import joblib
import ray
import torch
from ray.util import placement_group, remove_placement_group

from groundray.config import Settings
from groundray.runtime import cluster, compat

MIN_DATA_CPUS = 0.2  # for each worker
TELL_SECONDS = 30.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Resources:
    """What a run wants of the cluster, against what the cluster has."""

    workers: int
    worker_cpus: float
    gpus: int
    cluster_cpus: float
    cluster_gpus: float
    where: str

    def check(self) -> None:
        """Raise ValueError, saying what is missing, where the run could never start or never be fed."""
        if self.gpus > self.cluster_gpus:
            raise ValueError(
                f"scaling.use_gpu: expected {self.gpus} GPUs for {self.workers} workers, "
                f"the cluster has {self.cluster_gpus:g}"
            )
        if not leaves_data_cpus(self.cluster_cpus, self.workers, self.worker_cpus):
            most = (self.cluster_cpus - self.workers * MIN_DATA_CPUS) / self.workers
            raise ValueError(
                f"{self.workers} workers with {self.worker_cpus:g} CPUs each leave Ray Data no CPU of the cluster's "
                f"{self.cluster_cpus:g}: "
                + (
                    f"set scaling.cpus_per_worker to {most:.2f} or less"
                    if most > 0
                    else "use fewer workers (scaling.num_workers) or a larger cluster"
                )
            )


def min_bundles(settings: Settings) -> list[dict[str, float]]:
    """Return the bundles that a run takes at least, each of them on one machine."""
    scaling = settings.scaling
    worker = {"CPU": scaling.cpus_per_worker} | ({"GPU": 1.0} if scaling.use_gpu else {})
    return [worker, {"CPU": MIN_DATA_CPUS}] * scaling.min_workers


def wait_until(
    check: Callable[[], Found], bundles: Sequence[Mapping[str, float]], minutes: float, tell: Callable[[str], None]
) -> Found:
    """What a check of the connected cluster gives; where it fails, but machines come when they are asked for, what it
    gives when they have come.

    That is where the head has no CPU: whoever starts such a cluster means its head to drive runs, and others, perhaps
    none yet, to do the work. Elsewhere the cluster is what it is.

    Args:
        check: raises ValueError where there is not enough.
        bundles: to ask for, each on one machine.
        minutes: to wait.
        tell: takes lines for a person.
    """
    try:
        return check()
    except ValueError:
        if not _head_has_no_cpu():
            raise
    wanted = sum((Counter(bundle) for bundle in bundles), Counter())
    told = " and ".join(f"{count:g} {kind}s" for kind, count in wanted.items())
    until = time.monotonic() + minutes * 60
    place = placement_group([dict(bundle) for bundle in bundles])  # what an autoscaler answers
    try:
        while (left := until - time.monotonic()) > 0:
            tell(f"waiting for machines with {told}, for {left / 60:.1f} minutes at most (scaling.wait_minutes)")
            if place.wait(min(TELL_SECONDS, left)):
                break
    finally:
        remove_placement_group(place)
    return check()


def _head_has_no_cpu() -> bool:
    """Whether the cluster's head has no CPU."""
    heads = [node["Resources"] for node in ray.nodes() if compat.HEAD_NODE_RESOURCE_NAME in node["Resources"]]
    return not any(head.get("CPU") for head in heads)


def leaves_data_cpus(cluster_cpus: float, workers: int, worker_cpus: float) -> bool:
    """Whether so many workers leave Ray Data what it needs to read for them."""
    rounding = 1e-9  # 2 - 2 x 0.8 is less than 2 x 0.2
    return cluster_cpus - workers * worker_cpus >= workers * (MIN_DATA_CPUS - rounding)


@dataclass(frozen=True)
class DataCpuBudget:
    """CPUs of the cluster for the reading and decoding of one rank.

    Attributes:
        cpus: all together.
        largest: that one node has free, for all ranks together; no task may ask for more.
        ranks: that read at the same time.
    """

    cpus: float
    largest: float
    ranks: int = 1

    @staticmethod
    def of(
        workers_on: Sequence[str], worker_cpus: float, nodes: Mapping[str, float], share: float = 1.0
    ) -> DataCpuBudget:
        """What is left for each rank.

        Args:
            workers_on: the node of each rank.
            nodes: the CPUs of each node that takes tasks.
            share: of what is left, that this run may take.
        """
        free = [max(0.0, cpus - worker_cpus * workers_on.count(node)) for node, cpus in nodes.items()]
        ranks = len(workers_on)
        return DataCpuBudget(max(MIN_DATA_CPUS, sum(free) * share / ranks), max(0.01, *free), ranks)


def nodes() -> dict[str, float]:
    """The CPUs of each node of the cluster that takes tasks. One that is drained still counts in Ray's own sums: tasks
    made as large as those promise would fit on none of the others, and wait for ever."""
    leaving = compat.draining_nodes()
    return {
        node["NodeID"]: node["Resources"].get("CPU", 0.0)
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


def resources(settings: Settings, share: float = 1.0) -> Resources:
    """What the run wants, against what the connected cluster has, or its share of that."""
    has = ray.cluster_resources()
    return _resources(settings, has.get("CPU", 0) * share, has.get("GPU", 0) * share, "the cluster")


def preview(settings: Settings) -> Resources:
    """What the run wants, against the cluster at `RAY_ADDRESS` or else this machine; starts no cluster."""
    if settings.scaling.max_workers and os.environ.get("RAY_ADDRESS"):
        with cluster.connect():
            return resources(settings)
    return _resources(settings, joblib.cpu_count(), torch.cuda.device_count(), "this machine")


def _resources(settings: Settings, cpus: float, gpus: float, where: str) -> Resources:
    workers = settings.scaling.min_workers
    return Resources(
        workers=workers,
        worker_cpus=settings.scaling.cpus_per_worker,
        gpus=max(1, workers) if settings.scaling.use_gpu else 0,
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        where=where,
    )
