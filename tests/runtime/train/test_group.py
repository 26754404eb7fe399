"""Start of a worker group: the network interface for gloo, and cleanup after a failed start."""

from __future__ import annotations

import os
from typing import Any

import pytest

from groundray.runtime.compat import FailureDecision
from groundray.runtime.train import group
from groundray.runtime.train.group import (
    INTERFACE,
    NodeTorchConfig,
    PartialGroupCleanup,
    interface_of,
    passed_on,
    set_environment,
    set_gloo_interface,
)


def test_an_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


@pytest.mark.parametrize(
    ("address", "before", "expected"),
    [("10.77.0.2", None, "eth7"), ("10.77.0.2", "mine", "mine"), ("127.0.0.1", None, None), ("10.1.1.1", None, None)],
)
def test_gloo_is_told_the_nodes_own_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, address: str, before: str | None, expected: str | None
) -> None:
    monkeypatch.setenv(INTERFACE, before or "")  # which also keeps it from other tests
    if not before:
        monkeypatch.delenv(INTERFACE)
    monkeypatch.setattr(group.ray.util, "get_node_ip_address", lambda: address)
    monkeypatch.setattr(group, "interface_of", {"10.77.0.2": "eth7", "127.0.0.1": "lo"}.get)
    set_gloo_interface()
    assert os.environ.get(INTERFACE) == expected


def test_collectives_are_recorded_and_hang_longer_than_a_worker_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that are set stay."""
    monkeypatch.setattr(group.os, "environ", {"TORCH_FR_BUFFER_SIZE": "10"})
    set_environment("1700000000000000000", 780)
    assert os.environ == {
        "GROUNDRAY_WORKER_GROUP": "1700000000000000000",
        "TORCH_FR_BUFFER_SIZE": "10",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "780",
    }


def test_variables_of_nccl_reach_the_workers() -> None:
    given = {
        "NCCL_DEBUG": "INFO",
        "NCCL_SOCKET_IFNAME": "eth",
        "TORCH_NCCL_NAN_CHECK": "1",
        "PATH": "/bin",
        "MY_NCCL_": "",
    }
    assert set(passed_on(given)) == {"NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "TORCH_NCCL_NAN_CHECK"}


class Group:
    """A group of workers, which counts how often it is taken apart."""

    def __init__(self) -> None:
        self.taken_apart = 0

    def shutdown(self) -> None:
        self.taken_apart += 1


def test_a_group_that_fails_as_it_begins_is_taken_apart_and_no_other() -> None:
    """A group that has started belongs to its controller, which would fail without it."""
    leftovers, first, second = PartialGroupCleanup(), Group(), Group()
    leftovers.after_worker_group_start(first)
    leftovers.before_controller_execute_failure_decision(FailureDecision.RETRY)
    leftovers.after_worker_group_start(second)
    leftovers.after_worker_group_training_start(second)
    leftovers.before_controller_execute_failure_decision(FailureDecision.RETRY)
    assert (first.taken_apart, second.taken_apart) == (1, 0)


def test_all_ranks_join_where_the_first_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Workers:
        def __len__(self) -> int:
            return 2

        def execute(self, work: Any, began: str, *arguments: Any) -> list[tuple[str, int]]:
            asked.append((work, int(began) > 0, *arguments))
            return [("10.77.0.2", 4001), ("10.77.0.3", 4002)]

        def execute_single_async(self, rank: int, work: Any, *arguments: Any) -> int:
            asked.append((work, rank, *arguments))
            return rank

    monkeypatch.setattr(group.ray, "get", lambda values: values)
    config = NodeTorchConfig("gloo", 780)
    config.backend_cls().on_start(Workers(), config)
    assert asked == [
        (group.prepare, True, 780),
        (group.join, 0, config, 0, 2, "10.77.0.2", 4001),
        (group.join, 1, config, 1, 2, "10.77.0.2", 4001),
    ]
    assert config.to_dict() == {"backend": "gloo", "timeout_s": 780}
