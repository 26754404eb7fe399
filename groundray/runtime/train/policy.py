"""What Ray Train does when workers are missing or fail: the policies of its controller, as groundray wants them.

Both are Ray's own with a decision of ours on top; `Trainer` puts them in place of Ray's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE, WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2._internal.execution.failure_handling.default import (
    RETRYABLE_CONTROLLER_ERRORS,
    _is_preemption_failure,
)
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from groundray.config import Settings
from groundray.runtime.train.group import Leftovers
from groundray.runtime.train.resources import is_fed
from groundray.training.attempts import Superseded
from groundray.training.events import Notice
from groundray.training.watchdog import grace
from groundray.training.worker import Stopped

TELL_SECONDS = 30.0
PAUSE_SECONDS = 0.5
RESIZE_SECONDS = 120.0  # for which rank 0 has time to write a checkpoint first
# what happens again however often a run goes on: it ends it at once
FINAL = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError, ImportError),
    *(torch.OutOfMemoryError, Superseded),
)
FINAL_OF_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class NoWorkers(ValueError):
    """The cluster had no room for the workers for as long as the run waits."""


@dataclass
class Patience:
    """For how long a run has been waiting for workers, and when that is too long.

    Args:
        seconds: for which it waits.
        wanted: what it waits for, in words.
    """

    seconds: float
    wanted: str
    mailbox: Any
    _since: float | None = None
    _told: float = field(default_factory=time.monotonic)

    def waits(self) -> None:
        """Tell now and then what is missing.

        Raises:
            NoWorkers: it has been too long.
            Stopped: the run is to end; there is no rank 0 to heed it.
        """
        if ray.get(self.mailbox.withdraw.remote()) == "stopped":
            raise Stopped("stopped")
        now = time.monotonic()
        if self._since is None:
            self._since = self._told = now
        waited = now - self._since
        if waited > self.seconds or now - self._told > TELL_SECONDS:
            self._told = now
            told = f"{self.wanted}; {_room()}"
            if waited > self.seconds:
                raise NoWorkers(
                    f"waited {waited:.0f} s (scaling.wait_minutes) for {told}: free or add machines, or ask for less "
                    "(scaling.num_workers, scaling.cpus_per_worker)"
                )
            self.mailbox.put.remote([Notice(f"waiting for {told}")])

    def is_over(self) -> None:
        """The workers are there."""
        self._since = None


class FixedWorkers(FixedScalingPolicy):
    """Always the same number of workers."""

    def __init__(self, scaling: ScalingConfig, patience: Patience):
        super().__init__(scaling)
        self._patience = patience

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._patience.waits()
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, *args: Any, **kwargs: Any) -> ScalingDecision:
        self._patience.is_over()
        return super().make_decision_for_running_worker_group(*args, **kwargs)


class ElasticWorkers(ElasticScalingPolicy):
    """As many workers as there is room for, of those numbers that share the chunks of a global batch evenly."""

    def __init__(self, scaling: ScalingConfig, patience: Patience, counts: tuple[int, ...]):
        super().__init__(scaling)
        self._patience, self._counts = patience, counts
        self._asked: float | None = None

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        each: Any = self.scaling_config._resources_per_worker_not_none["CPU"]
        cpus = ray.cluster_resources().get("CPU", 0)
        return max((count for count in self._counts if count <= possible and is_fed(cpus, count, each)), default=0)

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._patience.waits()
        self._asked = None
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            time.sleep(PAUSE_SECONDS)  # else the controller asks again at once, for ever
        return decision

    def make_decision_for_running_worker_group(self, *args: Any, **kwargs: Any) -> ScalingDecision:
        """Another number of workers begins where the last checkpoint is: rank 0 is asked to write one first, and ends
        by itself; where it does not, it is ended."""
        self._patience.is_over()
        if self._asked is not None:
            if time.monotonic() - self._asked <= RESIZE_SECONDS:
                return NoopDecision()
            self._asked = None
            self._patience.mailbox.withdraw.remote()
            return self._resize
        decision = super().make_decision_for_running_worker_group(*args, **kwargs)
        if isinstance(decision, ResizeDecision):
            self._asked, self._resize = time.monotonic(), decision
            self._patience.mailbox.want.remote("resized")
            return NoopDecision()
        return decision


class Recovery(FailurePolicy):
    """Goes on after whatever may not happen again, as long as the run gets further between one failure and the next."""

    def __init__(self, most: int, mailbox: Any):
        super().__init__(FailureConfig())
        self._most, self._mailbox = most, mailbox
        self._failures, self._steps = 0, 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        error = training_failed_error
        failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
        if isinstance(error, ControllerError):
            failures = [error.controller_failure]
            if isinstance(failures[0], RETRYABLE_CONTROLLER_ERRORS):
                return FailureDecision.RETRY
            if not isinstance(failures[0], OutOfMemoryError | RayTaskError):  # it is no worker's
                return FailureDecision.RAISE
        if _is_preemption_failure(error):
            return FailureDecision.RETRY
        if stopped := [failure for failure in failures if isinstance(failure, Stopped)]:
            if stopped[0].notice == "stopped":
                return FailureDecision.RAISE
            return FailureDecision.RETRY
        if any(is_final(failure) for failure in failures):
            return FailureDecision.RAISE
        steps = ray.get(self._mailbox.steps.remote())
        self._failures = self._failures + 1 if steps == self._steps else 1
        self._steps = steps
        if self._failures > self._most:
            return FailureDecision.RAISE
        self._mailbox.put.remote([Notice(f"{told(error)}; the run goes on from its last checkpoint")])
        return FailureDecision.RETRY


class Trainer(TorchTrainer):
    """Ray's trainer with these policies.

    Args:
        settings: of the run.
        mailbox: see worker.py.
    """

    def __init__(self, *args: Any, settings: Settings, mailbox: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._settings, self._mailbox = settings, mailbox

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        scaling = self._settings.scaling
        workers = (
            f"{scaling.min_workers} to {scaling.max_workers}"
            if scaling.min_workers < scaling.max_workers
            else f"{scaling.max_workers}"
        )
        each = f"{scaling.cpus_per_worker:g} CPUs{' and a GPU' if scaling.use_gpu else ''}"
        patience = Patience(scaling.wait_minutes * 60, f"{workers} workers with {each} each", self._mailbox)
        kwargs["scaling_policy"] = (
            ElasticWorkers(self.scaling_config, patience, self._settings.worker_counts)
            if scaling.min_workers < scaling.max_workers
            else FixedWorkers(self.scaling_config, patience)
        )
        kwargs["failure_policy"] = Recovery(scaling.max_failures, self._mailbox)
        kwargs["callbacks"] = [Leftovers(), *kwargs["callbacks"]]
        hang = scaling.hang_minutes * 60
        stopped = os.environ.get(WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR) or str(hang + 1.5 * grace(hang))
        # Ray's actor that frees the places of workers whose driver has gone asks for the driver by this address, and
        # else asks the newest cluster of the machine (Ray 2.60)
        known = {
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR: stopped,
        }
        with _known_to_ray_train(known):
            return super()._initialize_and_run_controller(**kwargs)


@contextlib.contextmanager
def _known_to_ray_train(variables: dict[str, str]) -> Iterator[None]:
    """Meanwhile a controller that is started has these in its environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    ENV_VARS_TO_PROPAGATE.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def is_final(failure: BaseException) -> bool:
    """Whether a worker's failure would happen again."""
    cause = failure.cause if isinstance(failure, RayTaskError) else failure
    return cause.errno in FINAL_OF_SYSTEM if isinstance(cause, OSError) else isinstance(cause, FINAL)


def told(error: TrainingFailedError | RayError) -> str:
    """What happened to the workers, or to their controller, without the frames of the machinery around it."""
    if isinstance(error, RayTaskError):
        return f"the run's controller failed: {_cause(error)}"
    if isinstance(error, RayError):
        return f"the run's controller died: {_of_a_death(error)}"
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if isinstance(failure, OutOfMemoryError):
            return f"a worker died: {_of_a_death(failure)}"
        return f"the workers could not begin: {_cause(failure)}" if isinstance(failure, RayTaskError) else str(failure)
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    # a final one first: others may have failed because of it
    for rank, failure in sorted(failures.items(), key=lambda one: (not is_final(one[1]), one[0])):
        if isinstance(failure, WorkerHealthCheckFailedError):
            return f"worker {rank} died: {_of_a_death(failure.health_check_failure)}"
        if isinstance(failure, WorkerHealthCheckTimeoutError):
            waited = re.search(r"hanging for (\d+)", str(failure))
            return f"worker {rank} has not answered for {waited[1] if waited else '?'} s (scaling.hang_minutes)"
        if isinstance(failure, OutOfMemoryError):
            return f"worker {rank} failed: {_of_a_death(failure)}"
        return f"worker {rank}: {_cause(failure)}"
    return str(error)


def _cause(failure: Exception) -> str:
    cause = failure.cause if isinstance(failure, RayTaskError) else failure
    return f"{type(cause).__name__}: {cause}"


def _of_a_death(failure: Exception) -> str:
    """Ray's own words, which run over many lines, as what they mean."""
    text = str(failure)
    if "running low on memory" in text:  # of the kernel's killer Ray knows nothing
        return (
            "its machine ran out of memory: use smaller chunks (scaling.chunks, scaling.accumulate true), fewer "
            "workers a machine, or a smaller data.prefetch"
        )
    where = re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)
    on = f" {where[1]}" if where else ""
    if "its node has died" in text:
        why = re.search(r"node was terminated \w+: (.*)", text)
        return f"its machine{on} is lost{f': {why[1]}' if why else ''}"
    if "its worker process has died" in text:
        return f"its process{' on' + on if on else ''} ended without a word: killed, for want of memory too, or crashed"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(failure).__name__)


def _room() -> str:
    """What of the cluster is free."""
    has, free = ray.cluster_resources(), ray.available_resources()
    told = [f"{free.get(kind, 0):g} of {has[kind]:g} {kind}s" for kind in ("CPU", "GPU") if kind in has]
    return f"free in the cluster: {', '.join(told) or 'nothing'}"
