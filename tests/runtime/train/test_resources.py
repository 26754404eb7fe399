"""CPUs of a cluster that remain for reading and decoding."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from groundray.runtime.data.ray_stream import task_sizes
from groundray.runtime.train.resources import DataCpuBudget


def test_tasks_fit_on_a_node_with_a_worker() -> None:
    """Two nodes of one CPU are left of three, with .3 free on each: a task of .6 would never start."""
    cpu_budget = DataCpuBudget.of(["a", "b"], 0.7, {"a": 1.0, "b": 1.0})
    assert cpu_budget.cpus == pytest.approx(0.3)
    assert cpu_budget.largest == pytest.approx(0.3)
    found = task_sizes(cpu_budget)
    assert 2 * found.readers * found.reading + found.decoding <= 0.3 + 1e-9


def test_two_workers_share_a_machine_of_two_cores_and_leave_room_for_their_validation() -> None:
    cpu_budget = DataCpuBudget.of(["a", "a"], 0.5, {"a": 2.0})
    assert task_sizes(cpu_budget) == (0.5 * 15 / 16, 1, 0.125 * 15 / 16, None, 0.375 * 15 / 16)
    assert task_sizes(cpu_budget, training=False) == (0.5 / 16, 1, 0.25 / 16, 1, 0.25 / 16)


def test_a_large_node_decodes_a_cpu_at_a_time() -> None:
    found = task_sizes(DataCpuBudget.of(["a"], 1.0, {"a": 16.0, "b": 16.0}))
    assert (found.readers, found.reading) == (7, 0.25)
    assert found.decoding == pytest.approx((31 * 15 / 16 - 7 * 0.25) / 31)


def test_a_share_of_the_cluster_leaves_the_rest_to_other_trials() -> None:
    assert DataCpuBudget.of(["a"], 1.0, {"a": 5.0}, fraction=0.5).cpus == 2.0


@given(st.data())
def test_decoding_fits_where_all_ranks_read_and_validate_on_one_node(data: st.DataObject) -> None:
    nodes = data.draw(st.dictionaries(st.sampled_from("abcdef"), st.floats(0.0, 64.0), min_size=1))
    worker = data.draw(st.floats(0.1, 4.0))
    on = data.draw(st.lists(st.sampled_from(sorted(nodes)), min_size=1, max_size=8))
    free = {node: cpus - worker * on.count(node) for node, cpus in nodes.items()}
    assume(min(free.values()) >= 0 and max(free.values()) >= 0.1)
    cpu_budget = DataCpuBudget.of(on, worker, nodes)
    train, val = task_sizes(cpu_budget), task_sizes(cpu_budget, training=False)
    assert min(train.reading, train.decoding, val.reading, val.decoding) > 0
    assert val.decoders is not None
    validating = val.readers * val.reading + val.decoders * val.decoding
    assert validating == pytest.approx(val.cpus)
    assert train.cpus + val.cpus <= cpu_budget.cpus + 1e-6
    room = max(free.values()) + 1e-6
    assert len(on) * (train.readers * train.reading + validating) + train.decoding <= room
