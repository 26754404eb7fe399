"""Scaling decisions and wait limits, tested without a cluster."""

from __future__ import annotations

import own_time
import pytest
import ray
from mailboxes import Mailbox
from ray.train import ScalingConfig

from groundray.runtime import compat
from groundray.runtime.compat import NoopDecision, ResizeDecision
from groundray.runtime.train import scaling_policy
from groundray.runtime.train.scaling_policy import ElasticWorkers, NoWorkers, WaitTimeout
from groundray.training.endings import Stopped


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    monkeypatch.setattr(ray, "get", lambda value: value)
    return Mailbox()


def test_a_run_that_waits_says_what_is_missing_and_ends(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    own_time.give(monkeypatch, scaling_policy, monotonic=lambda: now[0])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    draining = set[str]()
    monkeypatch.setattr(compat, "draining_nodes", lambda: draining)
    wait_timeout = WaitTimeout(120, "2 workers with 1 CPUs each", mailbox)
    for now[0] in (100.0, 110.0, 131.0, 140.0):
        wait_timeout.check()
    assert [event.text for event in mailbox.events] == [
        "waiting for 2 workers with 1 CPUs each; free in the cluster: 0.5 of 2 CPUs"
    ]
    wait_timeout.reset()
    now[0] = 400.0
    wait_timeout.check()
    now[0] = 521.0
    draining.add("node")
    with pytest.raises(
        NoWorkers,
        match=r"waited 121 s \(scaling.wait_minutes\) for 2 workers .* 0.5 of 2 CPUs, with 1 nodes .*: free or",
    ):
        wait_timeout.check()


def use_nodes(monkeypatch: pytest.MonkeyPatch, *draining: str, **cpus: float) -> None:
    """Have Ray report nodes by their id, each with so many CPUs, of which some are draining."""
    told = [{"NodeID": name, "Alive": True, "Resources": {"CPU": float(has)}} for name, has in cpus.items()]
    monkeypatch.setattr(ray, "nodes", lambda: told)
    monkeypatch.setattr(compat, "draining_nodes", lambda: set(draining))


def elastic(mailbox: Mailbox, counts: tuple[int, ...]) -> ElasticWorkers:
    scaling = ScalingConfig(num_workers=(counts[0], counts[-1]), resources_per_worker={"CPU": 1})
    return ElasticWorkers(scaling, WaitTimeout(60, "workers", mailbox), counts)


@pytest.mark.parametrize(
    ("cpus", "cluster", "workers"),
    [(0, 9, 0), (1, 9, 1), (2, 9, 2), (3, 9, 2), (4, 9, 4), (9, 9, 4), (2, 2, 1), (4, 4.8, 4), (4, 4.7, 2)],
)
def test_only_numbers_of_workers_that_share_the_chunks_and_can_be_fed(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, cpus: float, cluster: float, workers: int
) -> None:
    use_nodes(monkeypatch, node=cluster)
    assert elastic(mailbox, (1, 2, 4))._count_possible_workers({"node": {"CPU": float(cpus)}}) == workers


def test_workers_with_a_part_of_a_cpu_are_all_counted(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray divides 0.7 + 0.7 + 0.7 by 0.7 and gets two."""
    use_nodes(monkeypatch, node=9)
    scaling = ScalingConfig(
        num_workers=(1, 3), use_gpu=True, accelerator_type="H100", resources_per_worker={"CPU": 0.7, "GPU": 1}
    )
    workers = ElasticWorkers(scaling, WaitTimeout(60, "workers", mailbox), (1, 3))
    reserved = {"CPU": 0.7 + 0.7 + 0.7, "GPU": 3.0, "accelerator_type:H100": 0.003}
    assert workers._count_possible_workers({"node": reserved}) == 3
    assert ElasticWorkers.__base__._count_possible_workers(workers, {"node": reserved}) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(("draining", "workers"), [((), 4), (("b",), 2), (("c",), 2), (("a", "b"), 0)])
def test_a_draining_node_is_no_room_for_workers_nor_for_reading(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, draining: tuple[str, ...], workers: int
) -> None:
    """Node c has the CPUs that read for the workers on a and b."""
    use_nodes(monkeypatch, *draining, a=2, b=2, c=0.8)
    reserved = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}, "gone": {"CPU": 8.0}}
    assert elastic(mailbox, (1, 2, 4))._count_possible_workers(reserved) == workers


def test_a_run_that_waits_heeds_its_end(mailbox: Mailbox) -> None:
    wait_timeout = WaitTimeout(60, "workers", mailbox)
    wait_timeout.check()
    assert mailbox.withdrawn == 1  # what was wanted of the group before
    mailbox.end = "stopped"
    with pytest.raises(Stopped):
        wait_timeout.check()


def test_a_running_group_is_asked_before_it_is_resized(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = elastic(mailbox, (1, 2))
    decision = ResizeDecision(2, {"CPU": 1.0})
    monkeypatch.setattr(
        ElasticWorkers.__base__, "make_decision_for_running_worker_group", lambda *_: decision, raising=True
    )
    now = [0.0]
    own_time.give(monkeypatch, scaling_policy, monotonic=lambda: now[0])
    assert isinstance(workers.make_decision_for_running_worker_group(None, None), NoopDecision)
    assert mailbox.wanted == ["resized"]
    assert isinstance(workers.make_decision_for_running_worker_group(None, None), NoopDecision)
    now[0] = scaling_policy.RESIZE_SECONDS + 1
    assert workers.make_decision_for_running_worker_group(None, None) is decision
    assert mailbox.withdrawn == 1
    assert isinstance(workers.make_decision_for_running_worker_group(None, None), NoopDecision)  # of the new group
