"""Whether workers fit on a cluster's nodes, and the CPUs that they leave for reading and decoding."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from groundray import config
from groundray.runtime.data.ray_stream import task_sizes
from groundray.runtime.nodes import Node
from groundray.runtime.train.resources import DataCpuBudget, Resources, min_bundles


def test_tasks_fit_on_a_node_with_a_worker() -> None:
    """Two nodes of one CPU are left of three, with .3 free on each: a task of .6 would never start."""
    cpu_budget = DataCpuBudget.of(["a", "b"], 0.7, [Node("a", 1), Node("b", 1)])
    assert cpu_budget.cpus == pytest.approx(0.3)
    assert cpu_budget.largest == pytest.approx(0.3)
    found = task_sizes(cpu_budget)
    assert 2 * found.readers * found.reading + found.decoding <= 0.3 + 1e-9


def test_two_workers_share_a_machine_of_two_cores_and_leave_room_for_their_validation() -> None:
    cpu_budget = DataCpuBudget.of(["a", "a"], 0.5, [Node("a", 2)])
    found = task_sizes(cpu_budget)
    assert found[:4] == (0.5 * 15 / 16, 1, 0.125 * 15 / 16, None)
    assert found.decoding == pytest.approx(0.375 * 15 / 16, abs=1e-6)
    assert task_sizes(cpu_budget, training=False) == (0.5 / 16, 1, 0.25 / 16, 1, 0.25 / 16)


def test_more_tasks_decode_than_there_are_cpus() -> None:
    """After each, its place is empty for a moment."""
    found = task_sizes(DataCpuBudget.of(["a"], 1.0, [Node("a", 16), Node("b", 16)]))
    assert (found.readers, found.reading) == (7, 0.25)
    assert found.decoding == pytest.approx((31 * 15 / 16 - 7 * 0.25) / 39, abs=1e-6)
    two = task_sizes(DataCpuBudget(2, 2))
    assert two.readers * two.reading + 3 * two.decoding <= two.cpus < two.readers * two.reading + 4 * two.decoding


@given(st.floats(0.05, 64.0))
def test_all_tasks_of_a_rank_fit_into_its_limit(cpus: float) -> None:
    found = task_sizes(DataCpuBudget(cpus, cpus))
    tasks = max(1, math.ceil(1.25 * int(cpus)))
    assert sum([found.reading] * found.readers + [found.decoding] * tasks) <= found.cpus


def test_a_share_of_the_cluster_leaves_the_rest_to_other_trials() -> None:
    assert DataCpuBudget.of(["a"], 1.0, [Node("a", 5)], fraction=0.5).cpus == 2.0


@given(st.data())
def test_decoding_fits_where_all_ranks_read_and_validate_on_one_node(data: st.DataObject) -> None:
    nodes = data.draw(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.0, 64.0), min_size=1))
    worker = data.draw(st.floats(0.1, 4.0))
    on = data.draw(st.lists(st.sampled_from(sorted(nodes)), min_size=1, max_size=8))
    free = {node: cpus - worker * on.count(node) for node, cpus in nodes.items()}
    assume(min(free.values()) >= 0 and max(free.values()) >= 0.1)
    cpu_budget = DataCpuBudget.of(on, worker, [Node(*node) for node in nodes.items()])
    train, val = task_sizes(cpu_budget), task_sizes(cpu_budget, training=False)
    assert min(train.reading, train.decoding, val.reading, val.decoding) > 0
    assert val.decoders is not None
    validating = val.readers * val.reading + val.decoders * val.decoding
    assert validating == pytest.approx(val.cpus)
    assert train.cpus + val.cpus <= cpu_budget.cpus + 1e-6
    room = max(free.values()) + 1e-6
    assert len(on) * (train.readers * train.reading + validating) + train.decoding <= room


def test_reading_uses_the_nodes_without_gpus_too() -> None:
    """Two workers take their GPU node's CPUs whole: what is left is a node without GPUs."""
    nodes = [Node("gpu", 8, 2), Node("cpu", 12)]
    cpu_budget = DataCpuBudget.of(["gpu", "gpu"], 4.0, nodes)
    assert (cpu_budget.cpus, cpu_budget.largest) == (6.0, 12.0)
    assert task_sizes(cpu_budget).decoding <= 1.0


GPU_NODE, CPU_NODE = Node("a", 4, 1), Node("b", 64)


def resources(
    *nodes: Node, workers: int = 2, cpus: float = 1.0, use_gpu: bool = True, gpu_type: str | None = None
) -> Resources:
    return Resources(workers, cpus, workers if use_gpu else 0, nodes, "the cluster", gpu_type=gpu_type)


def test_workers_that_fit_on_nodes_with_gpus_pass() -> None:
    resources(GPU_NODE, GPU_NODE, CPU_NODE, cpus=4).check()
    resources(Node("a", 3), Node("b", 3), cpus=2, use_gpu=False).check()
    resources(workers=0, use_gpu=False).check()  # in this process


@pytest.mark.parametrize(
    ("nodes", "cpus", "use_gpu", "message"),
    [
        (
            (GPU_NODE, GPU_NODE, CPU_NODE),
            6.0,
            True,
            "each with 6 CPUs and a GPU on one node, got room for 0 on nodes with 4 CPUs and 1 GPUs (2), 64 CPUs (1): "
            "set scaling.cpus_per_worker to 4.00 or less",
        ),
        (
            (Node("a", 16, 1), GPU_NODE, CPU_NODE),
            8.0,
            True,
            "got room for 1 on nodes with 16 CPUs and 1 GPUs (1), 4 CPUs and 1 GPUs (1), 64 CPUs (1): set "
            "scaling.cpus_per_worker to 4.00 or less",
        ),
        (
            (Node("a", 8, 2),),
            4.0,
            True,
            "leave Ray Data no CPU of the cluster's 8: set scaling.cpus_per_worker to 3.80",
        ),
        ((Node("a", 1), Node("b", 1), Node("c", 1)), 1.2, False, "set scaling.cpus_per_worker to 1.00 or less"),
        ((Node("a", 0.3),), 0.2, False, "use fewer workers (scaling.num_workers) or a larger cluster"),
        ((GPU_NODE, CPU_NODE), 1.0, True, "scaling.use_gpu: expected 2 GPUs for 2 workers, the cluster has 1"),
    ],
)
def test_workers_that_fit_on_no_node_are_refused(
    nodes: tuple[Node, ...], cpus: float, use_gpu: bool, message: str
) -> None:
    found = resources(*nodes, cpus=cpus, use_gpu=use_gpu)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        found.check()
    if repair := re.search(r"set scaling.cpus_per_worker to ([\d.]+) or less", str(refused.value)):
        resources(*nodes, cpus=float(repair[1]), use_gpu=use_gpu).check()


def test_workers_fit_on_nodes_with_gpus_of_their_type() -> None:
    fast, slow = Node("a", 8, 4, frozenset({"H100"})), Node("b", 16, 4, frozenset({"L4"}))
    resources(fast, slow, cpus=4, gpu_type="H100").check()
    with pytest.raises(
        ValueError, match=r"expected 2 L40S GPUs .* has 0 \(nodes with 8 CPUs and 4 H100 GPUs \(1\), 16"
    ):
        resources(fast, slow, gpu_type="L40S").check()
    with pytest.raises(ValueError, match=r"6 CPUs and a H100 GPU on one node, got room for 1 .*per_worker to 4.00 or"):
        resources(fast, slow, cpus=6, gpu_type="H100").check()


def test_an_autoscaler_is_asked_for_the_type() -> None:
    words = ("--scaling.use_gpu=true", "--scaling.accelerator_type=H100", "--run.name=x")
    worker, _ = min_bundles(config.load("demo", words))[:2]
    assert worker["accelerator_type:H100"] > 0
