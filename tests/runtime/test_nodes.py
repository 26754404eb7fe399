"""Nodes of a cluster: what fits on them, and which accept tasks."""

from __future__ import annotations

import pytest
import ray
from ray.train import ScalingConfig

from groundray.runtime import compat, nodes
from groundray.runtime.nodes import Node, bundle, described, places


def test_a_task_needs_its_cpus_and_its_gpu_on_one_node() -> None:
    cluster = [Node("a", 8, 1), Node("b", 4, 2), Node("c", 64)]
    assert places(cluster, 4) == 2 + 1 + 16
    assert places(cluster, 4, 1) == 1 + 1
    assert places(cluster, 0, 1) == 3
    assert Node("a", 2.1).places(0.7) == 3  # 2.1 // 0.7 is 2


def test_a_task_gets_gpus_of_its_type() -> None:
    cluster = [Node("a", 8, 2, frozenset({"H100"})), Node("b", 8, 1, frozenset({"A100", "A100-40G"})), Node("c", 8, 4)]
    assert [places(cluster, 1, 1, kind) for kind in ("H100", "A100-40G", "L4", None)] == [2, 1, 0, 7]
    assert described(cluster[:2]) == "8 CPUs and 2 H100 GPUs (1), 8 CPUs and 1 A100 A100-40G GPUs (1)"
    assert bundle(4, 1, "H100") == {"CPU": 4, "GPU": 1, "accelerator_type:H100": 0.001}
    assert bundle(4) == {"CPU": 4}


@pytest.mark.parametrize("kind", [None, "H100"])
def test_a_bundle_is_that_of_a_training_worker(kind: str | None) -> None:
    scaling = ScalingConfig(num_workers=2, use_gpu=True, resources_per_worker={"CPU": 2}, accelerator_type=kind)
    assert compat.resources_per_worker(scaling) == bundle(2, 1, kind)


def test_sizes_of_nodes_are_counted() -> None:
    assert described([Node("head", 0), Node("a", 8, 1), Node("b", 0.5), Node("c", 8, 1)]) == (
        "8 CPUs and 1 GPUs (2), 0.5 CPUs (1)"
    )


def test_nodes_that_are_dead_or_drain_accept_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str, resources: dict[str, float], alive: bool = True) -> dict[str, object]:
        return {"NodeID": name, "Alive": alive, "Resources": resources}

    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [
            told("head", {}),
            told("gpu", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}),
            told("draining", {"CPU": 4.0, "GPU": 1.0}),
            told("dead", {"CPU": 4.0}, alive=False),
        ],
    )
    monkeypatch.setattr(compat, "draining_nodes", lambda: {"draining"})
    assert nodes.accepting_nodes() == [Node("head", 0), Node("gpu", 8, 1, frozenset({"H100"}))]
