"""The failures of workers that end a run, and their one-line descriptions."""

from __future__ import annotations

import errno
import re
import sys
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from groundray.runtime import compat
from groundray.training.attempts import Superseded
from groundray.training.endings import RESUMES, GraphsDoNotFit, Stopped
from groundray.training.events import Notice

# errors that would occur again in the next attempt: they end the run at once
FINAL = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, MemoryError, ImportError),
    Superseded,
)
FINAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class FailurePolicy(compat.RayFailurePolicy):
    """Restarts workers after a failure that may not occur again, as long as the run progresses between failures.

    Workers whose GPUs do not hold the graphs of several chunks start again with accumulation.

    Args:
        max_failures: consecutive failures without a new step after which the run ends.
    """

    def __init__(self, max_failures: int, mailbox: Any):
        super().__init__(FailureConfig())
        self._max_failures, self._mailbox = max_failures, mailbox
        self._failures, self._steps = 0, 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> compat.FailureDecision:
        error = training_failed_error
        failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
        if isinstance(error, ControllerError):
            failures = [error.controller_failure]
            if isinstance(failures[0], compat.RETRYABLE_CONTROLLER_ERRORS):
                return compat.FailureDecision.RETRY
            if not isinstance(failures[0], OutOfMemoryError | RayTaskError):  # not raised by a worker
                return compat.FailureDecision.RAISE
        if compat.is_preemption_failure(error):
            return compat.FailureDecision.RETRY
        if stopped := [failure for failure in failures if isinstance(failure, Stopped)]:
            if stopped[0].reason == "stopped":
                return compat.FailureDecision.RAISE
            return compat.FailureDecision.RETRY
        if any(is_final(failure) for failure in failures):
            return compat.FailureDecision.RAISE
        if too_large := [failure for failure in failures if isinstance(failure, GraphsDoNotFit)]:
            self._mailbox.accumulate.remote()
            self._mailbox.put.remote([Notice(f"{too_large[0]}; {RESUMES}")])
            return compat.FailureDecision.RETRY
        steps = ray.get(self._mailbox.steps_done.remote())
        self._failures = self._failures + 1 if steps == self._steps else 1
        self._steps = steps
        if self._failures > self._max_failures:
            return compat.FailureDecision.RAISE
        self._mailbox.put.remote([Notice(f"{describe(error)}; the run resumes from its last checkpoint")])
        return compat.FailureDecision.RETRY


def is_final(failure: BaseException) -> bool:
    """Return True if a worker's failure would occur again in the next attempt."""
    cause = failure.cause if isinstance(failure, RayTaskError) else failure
    if isinstance(cause, OSError):
        return cause.errno in FINAL_ERRNOS
    # the error is torch's own only in a process that has loaded torch, which takes seconds
    torch = sys.modules.get("torch")
    return isinstance(cause, (*FINAL, torch.OutOfMemoryError) if torch else FINAL)


def describe(error: TrainingFailedError | RayError) -> str:
    """Describe in one line what happened to the workers or their controller, without Ray's stack frames."""
    if isinstance(error, RayTaskError):
        return f"the run's controller failed: {_describe_cause(error)}"
    if isinstance(error, RayError):
        return f"the run's controller died: {_describe_death(error)}"
    if isinstance(error, ControllerError):
        failure = error.controller_failure
        if isinstance(failure, OutOfMemoryError):
            return f"a worker died: {_describe_death(failure)}"
        if isinstance(failure, RayTaskError):
            return f"the workers could not start: {_describe_cause(failure)}"
        return str(failure)
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    # a final failure comes first: it may have caused those of the other ranks
    for rank, failure in sorted(failures.items(), key=lambda item: (not is_final(item[1]), item[0])):
        if isinstance(failure, compat.WorkerHealthCheckFailedError):
            return f"worker {rank} died: {_describe_death(failure.health_check_failure)}"
        if isinstance(failure, compat.WorkerHealthCheckTimeoutError):
            waited = re.search(r"hanging for (\d+)", str(failure))
            return f"worker {rank} has not responded for {waited[1] if waited else '?'} s (scaling.hang_minutes)"
        if isinstance(failure, OutOfMemoryError):
            return f"worker {rank} failed: {_describe_death(failure)}"
        return f"worker {rank}: {_describe_cause(failure)}"
    return str(error)


def _describe_cause(failure: Exception) -> str:
    cause = failure.cause if isinstance(failure, RayTaskError) else failure
    return f"{type(cause).__name__}: {cause}"


def _describe_death(failure: Exception) -> str:
    """Summarize Ray's message about a dead process, which spans many lines."""
    text = str(failure)
    if "running low on memory" in text:  # Ray's own monitor; Ray does not see the kernel's OOM killer
        return (
            "its machine ran out of memory: use smaller chunks (scaling.chunks, scaling.accumulate true), fewer "
            "workers a machine, or a smaller data.prefetch"
        )
    address = re.search(r"^\s*ip: (\S+)", text, re.MULTILINE)
    on = f" {address[1]}" if address else ""
    if "its node has died" in text:
        reason = re.search(r"node was terminated \w+: (.*)", text)
        return f"its machine{on} is lost{f': {reason[1]}' if reason else ''}"
    if "its worker process has died" in text:
        return f"its process{' on' + on if on else ''} crashed or was killed (by the kernel, if memory ran out)"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(failure).__name__)
