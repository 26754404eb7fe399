"""The resources that a training run needs, and those that a cluster has."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import ray
from ray.util import placement_group, remove_placement_group

from groundray.runtime import cluster, compat
from groundray.runtime.nodes import ACCELERATOR_TYPE, ROUNDING, Node, accepting_nodes, bundle, described, places
from groundray.runtime.ray_address import given_address

if TYPE_CHECKING:
    from groundray.config import Settings

MIN_DATA_CPUS = 0.2  # for each worker's reading and decoding
NOTICE_SECONDS = 30.0  # between two notices that the run waits
Result = TypeVar("Result")


@dataclass(frozen=True)
class Resources:
    """The minimum resources of a run, and those of the cluster.

    Attributes:
        workers: the smallest number of workers.
        gpus: of all workers.
        nodes: those of the cluster.
        where: the name of the cluster in messages.
        fraction: the part of the cluster that the run may use, above 0 to 1.
        gpu_type: type of the GPUs, by Ray's name; None for any.
    """

    workers: int
    worker_cpus: float
    gpus: int
    nodes: Sequence[Node]
    where: str
    fraction: float = 1.0
    gpu_type: str | None = None

    @property
    def cluster_cpus(self) -> float:
        """CPUs of the cluster that the run may use."""
        return self.fraction * sum(node.cpus for node in self.nodes)

    @property
    def cluster_gpus(self) -> float:
        """GPUs of the cluster, of the run's type, that the run may use."""
        return self.fraction * sum(node.gpus for node in self.nodes if node.has_type(self.gpu_type))

    def check(self) -> None:
        """Raise ValueError if the workers do not fit on the cluster, or leave no CPU to read and decode their data."""
        if self.gpus > self.cluster_gpus:
            setting, kind = ("accelerator_type", f"{self.gpu_type} GPUs") if self.gpu_type else ("use_gpu", "GPUs")
            there = f" (nodes with {described(self.nodes)})" if self.gpu_type else ""
            raise ValueError(
                f"scaling.{setting}: expected {self.gpus} {kind} for {self.workers} workers, "
                f"the cluster has {self.cluster_gpus:g}{there}"
            )
        if not leaves_data_cpus(self.cluster_cpus, self.workers, self.worker_cpus):
            raise ValueError(
                f"{self.workers} workers with {self.worker_cpus:g} CPUs each leave Ray Data no CPU of the cluster's "
                f"{self.cluster_cpus:g}: {self._fewer_cpus()}"
            )
        if (found := self._places(self.worker_cpus)) < self.workers:
            gpu = f" and a{f' {self.gpu_type}' if self.gpu_type else ''} GPU" if self.gpus else ""
            raise ValueError(
                f"scaling.cpus_per_worker: expected nodes with room for {self.workers} workers, each with "
                f"{self.worker_cpus:g} CPUs{gpu} on one node, got room for {found} on nodes with "
                f"{described(self.nodes)}: {self._fewer_cpus()}"
            )

    def _places(self, worker_cpus: float) -> int:
        return places(self.nodes, worker_cpus, 1 if self.gpus else 0, self.gpu_type)

    def _fewer_cpus(self) -> str:
        """Return the repair: the most CPUs a worker with which the workers and their reading fit on the nodes."""
        divided = {node.cpus / count for node in self.nodes for count in range(1, self.workers + 1)}
        fitting = [cpus for cpus in divided if cpus and self._places(cpus) >= self.workers]
        left = self.cluster_cpus / self.workers - MIN_DATA_CPUS
        maximum = math.floor(100 * min(max(fitting, default=0.0), left) + ROUNDING) / 100
        if maximum <= 0:
            return "use fewer workers (scaling.num_workers) or a larger cluster"
        return f"set scaling.cpus_per_worker to {maximum:.2f} or less"


def min_bundles(settings: Settings) -> list[dict[str, float]]:
    """Return the smallest resources of a run as bundles, each to be placed on one machine."""
    scaling = settings.scaling
    worker = bundle(scaling.cpus_per_worker, 1.0 if scaling.use_gpu else 0.0, scaling.accelerator_type)
    return [worker, {"CPU": MIN_DATA_CPUS}] * scaling.min_workers


def wait_until(
    check: Callable[[], Result], bundles: Sequence[Mapping[str, float]], minutes: float, tell: Callable[[str], None]
) -> Result:
    """Return what a check of the cluster's resources returns. On a cluster that can grow, wait until it passes.

    A cluster can grow if its head has no CPU: such a head only drives runs, and an autoscaler starts machines for the
    work. On any other cluster the check runs once.

    Args:
        check: raises ValueError if the cluster has too few resources.
        bundles: requested from the autoscaler, each on one machine.
        minutes: the longest wait.
        tell: receives lines about the wait.
    """
    try:
        return check()
    except ValueError:
        if not _can_grow():
            raise
    wanted = sum((Counter(bundle) for bundle in bundles), Counter())
    machines = " and ".join(f"{wanted[kind]:g} {kind}s" for kind in ("CPU", "GPU") if wanted[kind])
    machines += "".join(f" of type {kind.removeprefix(ACCELERATOR_TYPE)}" for kind in wanted if ":" in kind)
    deadline = time.monotonic() + minutes * 60
    group = placement_group([dict(bundle) for bundle in bundles])  # the autoscaler starts machines for it
    try:
        while (left := deadline - time.monotonic()) > 0:
            tell(f"waiting for machines with {machines}, for {left / 60:.1f} minutes at most (scaling.wait_minutes)")
            if group.wait(min(NOTICE_SECONDS, left)):
                break
    finally:
        remove_placement_group(group)
    return check()


def _can_grow() -> bool:
    """Return True if the cluster's head has no CPU."""
    heads = [node["Resources"] for node in ray.nodes() if compat.HEAD_NODE_RESOURCE_NAME in node["Resources"]]
    return not any(head.get("CPU") for head in heads)


def leaves_data_cpus(cluster_cpus: float, workers: int, worker_cpus: float) -> bool:
    """Return True if the workers leave Ray Data the CPUs that it needs to read for them."""
    return cluster_cpus - workers * worker_cpus >= workers * (MIN_DATA_CPUS - ROUNDING)


@dataclass(frozen=True)
class DataCpuBudget:
    """The cluster's CPUs for reading and decoding the data of one rank.

    Attributes:
        cpus: CPUs of this rank, on all nodes together.
        largest: free CPUs of the node with most, for all ranks together; a task must not ask for more.
        ranks: number of ranks that read at the same time.
    """

    cpus: float
    largest: float
    ranks: int = 1

    @staticmethod
    def of(
        workers_on: Sequence[str], worker_cpus: float, nodes: Iterable[Node], fraction: float = 1.0
    ) -> DataCpuBudget:
        """Return a rank's part of the CPUs that the workers leave, on nodes with and without GPUs.

        Args:
            workers_on: the id of each rank's node.
            nodes: those that accept tasks.
            fraction: the part of the remaining CPUs that this run may use, above 0 to 1.
        """
        free = [max(0.0, node.cpus - worker_cpus * workers_on.count(node.id)) for node in nodes]
        ranks = len(workers_on)
        return DataCpuBudget(max(MIN_DATA_CPUS, sum(free) * fraction / ranks), max(0.01, *free), ranks)


def cluster_resources(settings: Settings, fraction: float = 1.0) -> Resources:
    """Compare a run's needs with the connected cluster, of which it may use a fraction."""
    return _resources(settings, accepting_nodes(), "the cluster", fraction)


def preview(settings: Settings) -> Resources:
    """Compare a run's needs with the cluster at `RAY_ADDRESS`, or with this machine. Starts no cluster."""
    if settings.scaling.max_workers and given_address():
        with cluster.connect():
            return cluster_resources(settings)
    import joblib
    import torch  # the policies of Ray Train import this module, and need no torch

    kind = settings.scaling.accelerator_type  # this machine's is known when Ray has started on it
    here = Node("", joblib.cpu_count(), torch.cuda.device_count(), frozenset({kind} if kind else ()))
    return _resources(settings, [here], "this machine")


def _resources(settings: Settings, nodes: Sequence[Node], where: str, fraction: float = 1.0) -> Resources:
    workers = settings.scaling.min_workers
    return Resources(
        workers=workers,
        worker_cpus=settings.scaling.cpus_per_worker,
        gpus=max(1, workers) if settings.scaling.use_gpu else 0,
        nodes=nodes,
        where=where,
        fraction=fraction,
        gpu_type=settings.scaling.accelerator_type,
    )
