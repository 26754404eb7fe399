"""How many trials of a sweep run at the same time on a cluster."""

from __future__ import annotations

import pytest

from groundray.config import SettingsError
from groundray.runtime.nodes import Node
from groundray.runtime.tune.trials import TrialResources

FAST, SLOW = Node("a", 8, 2, frozenset({"H100"})), Node("b", 2, 2, frozenset({"L4"}))


def in_process(cpus: float, gpus: int = 0, gpu_type: str | None = None) -> TrialResources:
    """A trial in one process, which is on one node."""
    return TrialResources(cpus, gpus, workers=1, worker_cpus=cpus, gpu_type=gpu_type)


def test_as_many_trials_as_fit_on_the_nodes() -> None:
    assert in_process(1).concurrent(None, [FAST, SLOW]) == 10
    assert in_process(4, 1).concurrent(None, [FAST, SLOW]) == 2  # the sums would hold 2 of 5 CPUs, on no one node
    assert in_process(1, 1).concurrent(None, [FAST, SLOW]) == 4
    assert in_process(1, 1, "L4").concurrent(None, [FAST, SLOW]) == 2
    nested = TrialResources(cpus=2 * 1.2, gpus=2, workers=2, worker_cpus=1)
    assert nested.concurrent(None, [FAST, SLOW]) == 2
    assert nested.concurrent(1, [FAST, SLOW]) == 1


@pytest.mark.parametrize(
    ("trial", "wanted", "message"),
    [
        (in_process(9), None, r"on nodes with 8 CPUs and 2 H100 GPUs \(1\), 2 CPUs and 2 L4 GPUs \(1\): use fewer"),
        (in_process(3, 1, "L4"), None, "a trial takes 3 CPUs and 1 L4 GPUs, the cluster has 10 and 2 on nodes"),
        (in_process(1, 1, "T4"), None, "a trial takes 1 CPUs and 1 T4 GPUs, the cluster has 10 and 0: use fewer"),
        (in_process(5), 2, "--max-concurrent: expected at most 1, got 2"),
    ],
)
def test_trials_that_fit_on_no_node_are_refused(trial: TrialResources, wanted: int | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        trial.concurrent(wanted, [FAST, SLOW])
