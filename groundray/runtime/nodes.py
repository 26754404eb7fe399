"""The nodes of the connected cluster, and how many tasks of a size fit on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import ray

from groundray.runtime import compat

ROUNDING = 1e-9  # 2 - 2 x 0.8 is less than 2 x 0.2
ACCELERATOR_TYPE = "accelerator_type:"  # with a type, Ray's resource of a node whose GPUs are of it


@dataclass(frozen=True)
class Node:
    """The resources of a node, used and free.

    Attributes:
        id: Ray's id of the node.
        gpu_types: types of its GPUs, by their names in `ray.util.accelerators`; empty if Ray does not know them.
    """

    id: str
    cpus: float
    gpus: float = 0.0
    gpu_types: frozenset[str] = frozenset()

    def has_type(self, gpu_type: str | None) -> bool:
        """Return True if the node's GPUs are of this type, or if it is None."""
        return gpu_type is None or gpu_type in self.gpu_types

    def places(self, cpus: float, gpus: float = 0.0, gpu_type: str | None = None) -> int:
        """Return the number of tasks that fit on the node at once, each with so many CPUs and GPUs, of a type."""
        if not self.has_type(gpu_type):
            return 0
        return min(int(has / each + ROUNDING) for has, each in ((self.cpus, cpus), (self.gpus, gpus)) if each)


def places(nodes: Iterable[Node], cpus: float, gpus: float = 0.0, gpu_type: str | None = None) -> int:
    """Return the number of tasks that fit on the nodes at once, each on one of them."""
    return sum(node.places(cpus, gpus, gpu_type) for node in nodes)


def described(nodes: Iterable[Node]) -> str:
    """Return the sizes of the nodes, and how many there are of each."""
    useful = [node for node in nodes if node.cpus or node.gpus]  # a cloud's head has neither
    sizes = Counter(f"{node.cpus:g} CPUs" + (f" and {_gpus(node)}" if node.gpus else "") for node in useful)
    return ", ".join(f"{size} ({count})" for size, count in sizes.items()) or "nothing"


def _gpus(node: Node) -> str:
    return " ".join([f"{node.gpus:g}", *sorted(node.gpu_types), "GPUs"])


def bundle(cpus: float, gpus: float = 0.0, gpu_type: str | None = None) -> dict[str, float]:
    """Return the resources that a task requests of Ray."""
    named = {"CPU": cpus, "GPU": gpus, f"{ACCELERATOR_TYPE}{gpu_type}": 0.001 if gpu_type else 0.0}  # Ray's own amount
    return {name: amount for name, amount in named.items() if amount}


def accepting_nodes() -> list[Node]:
    """Return the nodes that accept tasks.

    Ray's own sums include draining nodes. Tasks sized by such a sum would fit on no other node, and wait forever.
    """
    draining = compat.draining_nodes()
    return [
        node_of(node["NodeID"], node["Resources"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    ]


def node_of(node_id: str, resources: dict[str, float]) -> Node:
    """Return a node with Ray's resources of it."""
    types = (name.removeprefix(ACCELERATOR_TYPE) for name in resources if name.startswith(ACCELERATOR_TYPE))
    return Node(node_id, resources.get("CPU", 0.0), resources.get("GPU", 0.0), frozenset(types))
