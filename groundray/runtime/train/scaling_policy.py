"""Scaling policies of Ray Train with a time limit: the number of workers of a run, and the wait for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.train import ScalingConfig

from groundray.runtime import compat
from groundray.runtime.nodes import accepting_nodes, node_of, places
from groundray.runtime.train.resources import leaves_data_cpus
from groundray.training.endings import Stopped
from groundray.training.events import Notice

NOTICE_SECONDS = 30.0  # between two notices that the run waits
PAUSE_SECONDS = 0.5
RESIZE_SECONDS = 120.0  # rank 0's time to write a checkpoint before its group is resized


class NoWorkers(ValueError):
    """The cluster had no room for the workers within `scaling.wait_minutes`."""


@dataclass
class WaitTimeout:
    """Limits how long a run waits for its workers.

    Args:
        seconds: the limit.
        wanted: what the run waits for, for notices and the error.
    """

    seconds: float
    wanted: str
    mailbox: Any
    _since: float | None = None
    _last_notice: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Start the wait, or continue it and send a notice every `NOTICE_SECONDS`.

        Raises:
            NoWorkers: the limit is exceeded.
            Stopped: the run was asked to stop, and there is no rank 0 that could react.
        """
        if ray.get(self.mailbox.clear_request.remote()) == "stopped":
            raise Stopped("stopped")
        now = time.monotonic()
        if self._since is None:
            self._since = self._last_notice = now
        waited = now - self._since
        if waited > self.seconds or now - self._last_notice > NOTICE_SECONDS:
            self._last_notice = now
            missing = f"{self.wanted}; {_free_resources()}"
            if waited > self.seconds:
                raise NoWorkers(
                    f"waited {waited:.0f} s (scaling.wait_minutes) for {missing}: free or add machines, or ask for "
                    "less (scaling.num_workers, scaling.cpus_per_worker)"
                )
            self.mailbox.put.remote([Notice(f"waiting for {missing}")])

    def reset(self) -> None:
        """End the wait: the workers have started."""
        self._since = None


class FixedWorkers(compat.FixedScalingPolicy):
    """A constant number of workers."""

    def __init__(self, scaling: ScalingConfig, wait_timeout: WaitTimeout):
        super().__init__(scaling)
        self._wait_timeout = wait_timeout

    def make_decision_for_non_running_worker_group(self) -> compat.ScalingDecision:
        self._wait_timeout.check()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, *args: Any, **kwargs: Any) -> compat.ScalingDecision:
        self._wait_timeout.reset()
        return super().make_decision_for_running_worker_group(*args, **kwargs)


class ElasticWorkers(compat.ElasticScalingPolicy):
    """The largest world size that fits on the cluster and divides the chunks of a global batch evenly.

    Args:
        counts: the world sizes to choose from.
    """

    def __init__(self, scaling: ScalingConfig, wait_timeout: WaitTimeout, counts: tuple[int, ...]):
        super().__init__(scaling)
        self._wait_timeout, self._counts = wait_timeout, counts
        self._resize_requested: float | None = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # Ray's own count takes 0.7 + 0.7 + 0.7 CPUs for two workers with 0.7 each, and counts draining nodes
        each = node_of("", compat.resources_per_worker(self.scaling_config))
        accepting = {node.id: node for node in accepting_nodes()}
        reserved = (node_of(*node) for node in reserved_resources.items() if node[0] in accepting)
        possible = places(reserved, each.cpus, each.gpus)
        cpus = sum(node.cpus for node in accepting.values())
        return max(
            (count for count in self._counts if count <= possible and leaves_data_cpus(cpus, count, each.cpus)),
            default=0,
        )

    def make_decision_for_non_running_worker_group(self) -> compat.ScalingDecision:
        self._wait_timeout.check()
        self._resize_requested = None
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, compat.NoopDecision):
            time.sleep(PAUSE_SECONDS)  # the controller asks again at once, in a busy loop
        return decision

    def make_decision_for_running_worker_group(self, *args: Any, **kwargs: Any) -> compat.ScalingDecision:
        """Resize in two steps: ask rank 0 for a checkpoint, after which it stops by itself and the group restarts from
        that checkpoint. If it has not stopped after `RESIZE_SECONDS`, resize anyway."""
        self._wait_timeout.reset()
        if self._resize_requested is not None:
            if time.monotonic() - self._resize_requested <= RESIZE_SECONDS:
                return compat.NoopDecision()
            self._resize_requested = None
            self._wait_timeout.mailbox.clear_request.remote()
            return self._resize
        decision = super().make_decision_for_running_worker_group(*args, **kwargs)
        if isinstance(decision, compat.ResizeDecision):
            self._resize_requested, self._resize = time.monotonic(), decision
            self._wait_timeout.mailbox.request_stop.remote("resized")
            return compat.NoopDecision()
        return decision


def _free_resources() -> str:
    """Describe the CPUs and GPUs of the cluster that are free, and how many of its nodes drain."""
    total, free, draining = ray.cluster_resources(), ray.available_resources(), len(compat.draining_nodes())
    described = [f"{free.get(kind, 0):g} of {total[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in total]
    leaving = f", with {draining} nodes that are draining and take no workers" if draining else ""
    return f"free in the cluster: {', '.join(described) or 'nothing'}{leaving}"
