"""Pools of actors that make derived data sets: each actor fits on every node that has what it needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundray.runtime.data.derived_tasks import Pool
from groundray.runtime.nodes import Node


@pytest.mark.parametrize(
    ("nodes", "tasks", "pool"),
    [
        ([Node("a", 8, 1)], 9, Pool(1, 8, 8, 1)),
        ([Node("a", 8, 1), Node("b", 4)], 9, Pool(1, 8, 8, 1)),  # not 12 CPUs, which no node has
        ([Node("a", 8, 1), Node("b", 4, 1)], 9, Pool(2, 4, 4, 1)),
        ([Node("a", 8, 1), Node("b", 4, 1)], 1, Pool(1, 4, 4, 1)),  # fewer tasks than GPUs
        ([Node("a", 10, 4)], 9, Pool(4, 2, 2, 1)),
        ([Node("a", 2, 4)], 9, Pool(4, 0.5, 1, 1)),
        ([Node("a", 2, 3)], 9, Pool(3, 0.66, 1, 1)),
        ([Node("a", 0, 1), Node("b", 8)], 9, Pool(1, 0, 1, 1)),
    ],
)
def test_an_actor_for_each_gpu(nodes: list[Node], tasks: int, pool: Pool) -> None:
    assert Pool.of(nodes, use_gpu=True).limited(tasks) == pool


def test_an_actor_for_each_gpu_of_the_type() -> None:
    nodes = [Node("a", 16, 1, frozenset({"H100"})), Node("b", 4, 2, frozenset({"T4"}))]
    assert Pool.of(nodes, use_gpu=True, gpu_type="H100") == Pool(1, 16, 16, 1)


@pytest.mark.parametrize(
    ("nodes", "tasks", "pool"),
    [
        ([Node("a", 8)], 9, Pool(8, 1, 1, 0)),
        ([Node("a", 8)], 2, Pool(2, 1, 4, 0)),
        ([Node("a", 8), Node("b", 2)], 1, Pool(1, 1, 2, 0)),
        ([Node("a", 0.5), Node("b", 1.5)], 9, Pool(1, 1, 1, 0)),  # two halves are no CPU
        ([Node("head", 0)], 9, Pool(1, 1, 1, 0)),  # Ray starts a node
    ],
)
def test_an_actor_for_each_cpu(nodes: list[Node], tasks: int, pool: Pool) -> None:
    assert Pool.of(nodes, use_gpu=True).limited(tasks) == pool  # no node has a GPU
    with_gpu = [Node(node.id, node.cpus, 1) for node in nodes]
    assert Pool.of(with_gpu, use_gpu=False).limited(tasks) == pool


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=6), st.integers(1, 64))
def test_all_actors_have_a_place_whichever_node_they_start_on(sizes: list[tuple[int, int]], tasks: int) -> None:
    nodes = [Node(str(number), cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]
    pool = Pool.of(nodes, use_gpu=True).limited(tasks)
    assert 1 <= pool.actors <= tasks
    usable = [node for node in nodes if (node.gpus if pool.gpus else node.cpus)]
    # any order of starting fills every node up to its GPUs or CPUs
    assert sum(int(node.gpus if pool.gpus else node.cpus) for node in usable) >= pool.actors or not usable
    for node in usable:
        assert node.places(pool.cpus, pool.gpus) == (node.gpus if pool.gpus else node.cpus)
    if pool.gpus:
        assert abs(pool.cpus * 1e4 - round(pool.cpus * 1e4)) < 1e-6  # in Ray's units
