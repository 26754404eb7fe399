"""What happens when workers fail or are missing: decided without a cluster."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.train import ScalingConfig
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from groundray.runtime.train import policy, ray_worker
from groundray.runtime.train.policy import ElasticWorkers, NoWorkers, Patience, Recovery, told
from groundray.training.attempts import Superseded
from groundray.training.checkpointer import NotFinite
from groundray.training.events import Notice, StepDone
from groundray.training.worker import Stopped

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


def of_a_task(cause: Exception) -> RayTaskError:
    """As an error of Ray Data's reading arrives."""
    return RayTaskError("read", "Traceback", cause)


class Remote:
    """A method as Ray's handles have it."""

    def __init__(self, method: Callable[..., Any]):
        self.remote = method


class Mailbox:
    """The mailbox, in this process."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.wanted: list[str] = []
        self.done = 0
        self.end = ""
        self.withdrawn = 0
        self.put = Remote(self.events.extend)
        self.want = Remote(self.wanted.append)
        self.withdraw = Remote(self._withdraw)
        self.steps = Remote(lambda: self.done)

    def _withdraw(self) -> str:
        self.withdrawn += 1
        return self.end


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Mailbox:
    monkeypatch.setattr(ray, "get", lambda value: value)
    return Mailbox()


def failed(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(failures)))


def died(text: str = "The actor died unexpectedly") -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("lost", failure=RayError(text))


DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tip: 10.77.0.3\n"
OUT_OF_MEMORY = OutOfMemoryError(
    "4 worker(s) were killed due to the node running low on memory. Memory on the node ..."
)


def test_a_dead_worker_is_replaced_as_long_as_the_run_gets_further(mailbox: Mailbox) -> None:
    recovery = Recovery(2, mailbox)
    for steps in (5, 5, 9, 9, 12):
        mailbox.done = steps
        assert recovery.make_decision(failed(died())) == RETRY
    assert recovery.make_decision(failed(died())) == RETRY
    assert recovery.make_decision(failed(died())) == RAISE
    assert mailbox.events[0] == Notice(
        "worker 0 died: The actor died unexpectedly; the run goes on from its last checkpoint"
    )


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("a shard is damaged"),
        NotFinite("loss nan"),
        Superseded("another attempt"),
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "not yours"),
        of_a_task(ValueError("sample 'a' cannot be decoded")),
        of_a_task(OSError(errno.EACCES, "not yours")),
        Stopped("stopped"),
    ],
)
def test_what_would_happen_again_ends_the_run(mailbox: Mailbox, failure: Exception) -> None:
    assert Recovery(3, mailbox).make_decision(failed(RuntimeError("connection closed"), failure)) == RAISE


@pytest.mark.parametrize("notice", ["preempted", "resized"])
def test_a_worker_that_had_notice_goes_on_elsewhere(mailbox: Mailbox, notice: str) -> None:
    recovery = Recovery(0, mailbox)
    assert [recovery.make_decision(failed(Stopped(notice))) for _ in range(5)] == [RETRY] * 5


def test_preemptions_and_late_places_are_no_failures(mailbox: Mailbox) -> None:
    recovery = Recovery(0, mailbox)
    assert recovery.make_decision(PreemptionError(PreemptionInfo(None, {"node": [0]}))) == RETRY
    assert recovery.make_decision(ControllerError(WorkerGroupStartupTimeoutError(num_workers=2))) == RETRY
    assert recovery.make_decision(ControllerError(NoWorkers("waited"))) == RAISE


def test_a_machine_out_of_memory_is_a_failure_wherever_ray_meets_it(mailbox: Mailbox) -> None:
    recovery = Recovery(1, mailbox)
    lost = WorkerHealthCheckFailedError("lost", failure=OUT_OF_MEMORY)
    for error in (failed(lost), failed(OUT_OF_MEMORY), ControllerError(OUT_OF_MEMORY)):
        mailbox.done += 1
        assert recovery.make_decision(error) == RETRY
    assert recovery.make_decision(ControllerError(OUT_OF_MEMORY)) == RAISE
    assert all("its machine ran out of memory: use smaller chunks" in event.text for event in mailbox.events)


def test_workers_that_cannot_reach_each_other_as_they_begin_are_a_failure(mailbox: Mailbox) -> None:
    recovery = Recovery(1, mailbox)
    assert recovery.make_decision(ControllerError(of_a_task(RuntimeError("Gloo connectFullMesh failed")))) == RETRY
    assert mailbox.events[-1].text.startswith("the workers could not begin: RuntimeError: Gloo connectFullMesh failed;")
    assert recovery.make_decision(ControllerError(of_a_task(ImportError("no torch there")))) == RAISE


def test_a_storage_that_is_away_for_a_moment_is_tried_again(mailbox: Mailbox) -> None:
    assert Recovery(1, mailbox).make_decision(failed(OSError(errno.EIO, "timed out"))) == RETRY


def test_the_cause_is_told_before_what_it_caused() -> None:
    error = failed(RuntimeError("connection closed by peer"), ValueError("shard-00000.parquet, row group 3"))
    assert told(error) == "worker 1: ValueError: shard-00000.parquet, row group 3"
    assert "smaller chunks" in told(failed(died("Task was killed due to the node running low on memory (OOM)")))


def test_a_controller_that_died_is_told_of() -> None:
    assert told(OUT_OF_MEMORY).startswith(
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
            "worker 0 died: its process on 10.77.0.3 ended without a word: killed, for want of memory too, or crashed",
        ),
        (
            WorkerHealthCheckTimeoutError("A worker health check has been hanging for 601.25 seconds. Marking ..."),
            "worker 0 has not answered for 601 s (scaling.hang_minutes)",
        ),
    ],
)
def test_what_ray_says_of_a_death_is_told_in_a_line(failure: Exception, meaning: str) -> None:
    assert told(failed(failure)) == meaning


def test_a_run_that_waits_says_what_is_missing_and_ends(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(policy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.5})
    patience = Patience(120, "2 workers with 1 CPUs each", mailbox)
    for now[0] in (100.0, 110.0, 131.0, 140.0):
        patience.waits()
    assert [event.text for event in mailbox.events] == [
        "waiting for 2 workers with 1 CPUs each; free in the cluster: 0.5 of 2 CPUs"
    ]
    patience.is_over()
    now[0] = 400.0
    patience.waits()
    now[0] = 521.0
    with pytest.raises(
        NoWorkers, match=r"waited 121 s \(scaling.wait_minutes\) for 2 workers .* 0.5 of 2 CPUs: free or"
    ):
        patience.waits()


def elastic(mailbox: Mailbox, counts: tuple[int, ...]) -> ElasticWorkers:
    scaling = ScalingConfig(num_workers=(counts[0], counts[-1]), resources_per_worker={"CPU": 1})
    return ElasticWorkers(scaling, Patience(60, "workers", mailbox), counts)


@pytest.mark.parametrize(
    ("cpus", "cluster", "workers"),
    [(0, 9, 0), (1, 9, 1), (2, 9, 2), (3, 9, 2), (4, 9, 4), (9, 9, 4), (2, 2, 1), (4, 4.8, 4), (4, 4.7, 2)],
)
def test_only_numbers_of_workers_that_share_the_chunks_and_can_be_fed(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch, cpus: float, cluster: float, workers: int
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cluster})
    assert elastic(mailbox, (1, 2, 4))._count_possible_workers({"node": {"CPU": float(cpus)}}) == workers


def test_a_run_that_waits_heeds_its_end(mailbox: Mailbox) -> None:
    patience = Patience(60, "workers", mailbox)
    patience.waits()
    assert mailbox.withdrawn == 1  # what was wanted of the group before
    mailbox.end = "stopped"
    with pytest.raises(Stopped):
        patience.waits()


def test_a_running_group_is_asked_before_it_is_resized(mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = elastic(mailbox, (1, 2))
    decision = ResizeDecision(2, {"CPU": 1.0})
    monkeypatch.setattr(
        policy.ElasticScalingPolicy, "make_decision_for_running_worker_group", lambda *_: decision, raising=True
    )
    now = [0.0]
    monkeypatch.setattr(policy.time, "monotonic", lambda: now[0])
    assert isinstance(workers.make_decision_for_running_worker_group(None, None), NoopDecision)
    assert mailbox.wanted == ["resized"]
    assert isinstance(workers.make_decision_for_running_worker_group(None, None), NoopDecision)
    now[0] = policy.RESIZE_SECONDS + 1
    assert workers.make_decision_for_running_worker_group(None, None) is decision
    assert mailbox.withdrawn == 1
    assert isinstance(workers.make_decision_for_running_worker_group(None, None), NoopDecision)  # of the new group


def test_a_step_that_is_done_again_is_no_progress() -> None:
    mailbox = ray_worker.Mailbox.__ray_metadata__.modified_class()
    for step in (*range(1, 51), *range(31, 51)):
        mailbox.put([StepDone("grounding", 0, step, 100, {})])
    assert mailbox.steps() == 50
    mailbox.put([StepDone("language", 0, 3, 100, {})])
    assert mailbox.steps() == 53


def test_the_end_of_a_run_outweighs_what_else_is_wanted() -> None:
    mailbox = ray_worker.Mailbox.__ray_metadata__.modified_class()
    mailbox.want("resized")
    assert mailbox.put([]) == "resized"
    assert mailbox.withdraw() == ""
    mailbox.want("stopped")
    mailbox.want("resized")
    assert mailbox.withdraw() == "stopped"
    assert mailbox.put([]) == "stopped"
