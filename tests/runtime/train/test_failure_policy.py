"""Which failures of workers end a run, and how they are described: decided without a cluster."""

from __future__ import annotations

import errno

import pytest
import ray
import torch
from mailboxes import Mailbox
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from groundray.runtime.compat import (
    FailureDecision,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from groundray.runtime.train.failure_policy import FailurePolicy, describe
from groundray.runtime.train.scaling_policy import NoWorkers
from groundray.training.attempts import Superseded
from groundray.training.endings import GraphsDoNotFit, Stopped
from groundray.training.events import Notice
from groundray.training.non_finite import NotFinite


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    monkeypatch.setattr(ray, "get", lambda value: value)
    return Mailbox()


RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def of_a_task(cause: Exception) -> RayTaskError:
    """As an error of Ray Data's reading arrives."""
    return RayTaskError("read", "Traceback", cause)


def failed(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(failures)))


def died(text: str = "The actor died unexpectedly") -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("lost", failure=RayError(text))


DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tip: 10.77.0.3\n"
OUT_OF_MEMORY = OutOfMemoryError(
    "4 worker(s) were killed due to the node running low on memory. Memory on the node ..."
)


def test_a_dead_worker_is_replaced_as_long_as_the_run_gets_further(mailbox: Mailbox) -> None:
    recovery = FailurePolicy(2, mailbox)
    for steps in (5, 5, 9, 9, 12):
        mailbox.done = steps
        assert recovery.make_decision(failed(died())) == RETRY
    assert recovery.make_decision(failed(died())) == RETRY
    assert recovery.make_decision(failed(died())) == RAISE
    assert mailbox.events[0] == Notice(
        "worker 0 died: The actor died unexpectedly; the run resumes from its last checkpoint"
    )


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("a shard is damaged"),
        NotFinite("loss nan"),
        Superseded("another attempt"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "not yours"),
        of_a_task(ValueError("sample 'a' cannot be decoded")),
        of_a_task(OSError(errno.EACCES, "not yours")),
        Stopped("stopped"),
    ],
)
def test_deterministic_failure_ends_the_run(mailbox: Mailbox, failure: Exception) -> None:
    assert FailurePolicy(3, mailbox).make_decision(failed(RuntimeError("connection closed"), failure)) == RAISE


@pytest.mark.parametrize("notice", ["preempted", "resized"])
def test_a_worker_that_had_notice_goes_on_elsewhere(mailbox: Mailbox, notice: str) -> None:
    recovery = FailurePolicy(0, mailbox)
    assert [recovery.make_decision(failed(Stopped(notice))) for _ in range(5)] == [RETRY] * 5


def test_preemptions_and_late_places_are_no_failures(mailbox: Mailbox) -> None:
    recovery = FailurePolicy(0, mailbox)
    assert recovery.make_decision(PreemptionError(PreemptionInfo(None, {"node": [0]}))) == RETRY
    assert recovery.make_decision(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))) == RETRY
    assert recovery.make_decision(ControllerError(NoWorkers("waited"))) == RAISE


def test_a_machine_out_of_memory_is_a_failure_wherever_ray_meets_it(mailbox: Mailbox) -> None:
    recovery = FailurePolicy(1, mailbox)
    lost = WorkerHealthCheckFailedError("lost", failure=OUT_OF_MEMORY)
    for error in (failed(lost), failed(OUT_OF_MEMORY), ControllerError(OUT_OF_MEMORY)):
        mailbox.done += 1
        assert recovery.make_decision(error) == RETRY
    assert recovery.make_decision(ControllerError(OUT_OF_MEMORY)) == RAISE
    assert all("its machine ran out of memory: use smaller chunks" in event.text for event in mailbox.events)


def test_a_gpu_without_room_for_several_chunks_gets_one_at_a_time(mailbox: Mailbox) -> None:
    """Whatever its loss does to the other ranks, and without counting as a failure."""
    recovery = FailurePolicy(0, mailbox)
    too_large = GraphsDoNotFit("worker 1 has no GPU memory for 4 chunks at once (CUDA out of memory)")
    assert recovery.make_decision(failed(RuntimeError("connection closed"), too_large)) == RETRY
    assert mailbox.accumulates
    assert mailbox.events == [
        Notice(
            "worker 1 has no GPU memory for 4 chunks at once (CUDA out of memory); the run resumes from its last "
            "checkpoint with scaling.accumulate: same results, a second forward pass"
        )
    ]


def test_workers_that_cannot_reach_each_other_as_they_begin_are_a_failure(mailbox: Mailbox) -> None:
    recovery = FailurePolicy(1, mailbox)
    assert recovery.make_decision(ControllerError(of_a_task(RuntimeError("Gloo connectFullMesh failed")))) == RETRY
    assert mailbox.events[-1].text.startswith("the workers could not start: RuntimeError: Gloo connectFullMesh failed;")
    assert recovery.make_decision(ControllerError(of_a_task(ImportError("no torch there")))) == RAISE


def test_a_storage_that_is_away_for_a_moment_is_tried_again(mailbox: Mailbox) -> None:
    assert FailurePolicy(1, mailbox).make_decision(failed(OSError(errno.EIO, "timed out"))) == RETRY


def test_the_cause_is_told_before_what_it_caused() -> None:
    error = failed(RuntimeError("connection closed by peer"), ValueError("shard-00000.parquet, row group 3"))
    assert describe(error) == "worker 1: ValueError: shard-00000.parquet, row group 3"
    assert "smaller chunks" in describe(failed(died("Task was killed due to the node running low on memory (OOM)")))


def test_a_controller_that_died_is_told_of() -> None:
    assert describe(OUT_OF_MEMORY).startswith(
        "the run's controller died: its machine ran out of memory: use smaller chunks"
    )


@pytest.mark.parametrize(
    ("failure", "meaning"),
    [
        (
            died(
                f"{DIED}The actor died because its node has died. Node Id: 9bc3\n\tthe actor's node was terminated "
                "unexpectedly: health check failed due to missing too many heartbeats"
            ),
            "worker 0 died: its machine 10.77.0.3 is lost: health check failed due to missing too many heartbeats",
        ),
        (
            died(f"{DIED}The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR ..."),
            "worker 0 died: its process on 10.77.0.3 crashed or was killed (by the kernel, if memory ran out)",
        ),
        (
            WorkerHealthCheckTimeoutError("A worker health check has been hanging for 601.25 seconds. Marking ..."),
            "worker 0 has not responded for 601 s (scaling.hang_minutes)",
        ),
    ],
)
def test_death_of_a_worker_is_described_in_one_line(failure: Exception, meaning: str) -> None:
    assert describe(failed(failure)) == meaning
