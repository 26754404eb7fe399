"""The way between workers and the driver: events and notice, without a cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import own_time
import pytest
import ray
import torch
from conftest import SmallWorld
from ray.exceptions import RayActorError

from groundray import config
from groundray.runtime.train import launch, ray_worker
from groundray.runtime.train.mailbox import FLUSH_SECONDS, Mailbox
from groundray.runtime.train.ray_worker import RayWorker
from groundray.runtime.train.resources import DataCpuBudget
from groundray.training import loop, preflight, recovery
from groundray.training.accumulation import offer_accumulation
from groundray.training.endings import GraphsDoNotFit
from groundray.training.events import Event, Notice, StepDone
from groundray.training.worker import InProcess


class Near:
    """An actor in this process: what a call gives is there at once."""

    def __init__(self, actor: Any):
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Near:
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "wait", lambda values, **_: (values, []))
    actor: Any = Mailbox
    return Near(actor.__ray_metadata__.modified_class())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true()


def test_an_event_that_cannot_be_told_keeps_neither_others_nor_notice(
    mailbox: Near, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "FLUSH_SECONDS", 0.02)
    seen: list[Event] = []
    ends = threading.Event()

    def observe(event: Event) -> None:
        if event == Notice("unspeakable"):
            raise BrokenPipeError
        seen.append(event)

    with launch._exchange_events(mailbox, observe, lambda: "stopped" if ends.is_set() else ""):
        mailbox.put.remote([Notice("unspeakable"), Notice("first")])
        until(lambda: seen == [Notice("first")])
        ends.set()
        until(lambda: mailbox.put.remote([]) == "stopped")
        mailbox.put.remote([Notice("last")])
    assert seen == [Notice("first"), Notice("last")]
    assert "unspeakable" in caplog.text


def test_a_mailbox_that_is_gone_with_its_node_hides_what_ended_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "FLUSH_SECONDS", 0.02)
    asked = threading.Event()

    def gone(*_: Any) -> None:
        asked.set()
        raise RayActorError

    mailbox = SimpleNamespace(take=SimpleNamespace(remote=gone), request_stop=SimpleNamespace(remote=gone))

    def fails() -> None:
        with launch._exchange_events(mailbox, lambda event: None, lambda: ""):
            assert asked.wait(20)
            raise launch.RunFailed("the node")

    with pytest.raises(launch.RunFailed, match="the node"):  # an error of the thread would be one of this test
        fails()


def rank_0(mailbox: Near) -> RayWorker:
    return RayWorker(
        rank=0, world_size=1, device="cpu", mailbox=mailbox, cpu_budget=DataCpuBudget(1.0, 1.0), prefetch=1
    )


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`preempted` is True once Ray has announced that a machine of the run is taken away."""
    state = SimpleNamespace(preempted=False)
    monkeypatch.setattr(ray_worker.compat, "is_preempted", lambda: state.preempted)
    return state


def test_notice_comes_with_the_answer_to_an_event(mailbox: Near, drained: SimpleNamespace) -> None:
    one = rank_0(mailbox)
    one.emit(StepDone("grounding", 0, 1, 9, {}))
    assert one.stop_reason() == ""
    mailbox.request_stop.remote("stopped")
    assert one.stop_reason() == ""
    one.emit(Notice("epoch"))
    assert one.stop_reason() == "stopped"


def test_notice_comes_though_there_is_nothing_to_tell(
    mailbox: Near, drained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a validation."""
    now = [100.0]
    own_time.give(monkeypatch, ray_worker, monotonic=lambda: now[0])
    one = rank_0(mailbox)
    one.emit(Notice("before"))
    assert one.stop_reason() == ""
    mailbox.request_stop.remote("resized")
    now[0] += FLUSH_SECONDS + 0.1
    assert one.stop_reason() == "resized"


def test_a_drained_machine_is_notice_but_the_end_of_the_run_outweighs_it(
    mailbox: Near, drained: SimpleNamespace
) -> None:
    one = rank_0(mailbox)
    drained.preempted = True
    assert one.stop_reason() == "preempted"
    mailbox.request_stop.remote("stopped")
    one.emit(Notice("more"))
    assert one.stop_reason() == "stopped"


@pytest.mark.thorough
def test_run_that_does_not_fit_on_its_gpu_goes_on_with_accumulation(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its last checkpoint, to the same losses; if that does not fit either, the run ends."""
    compute, held = loop.compute_gradients, 4

    def with_little_memory(stage: Any, model: Any, batch: Any, seed: int, accumulate: bool, *others: Any) -> Any:
        if batch.step == 5 and (1 if accumulate else len(batch.chunks)) >= held:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return compute(stage, model, batch, seed, accumulate, *others)

    def trained(name: str) -> tuple[dict[int, float], list[str]]:
        words = world.settings(
            *("--scaling.num_workers=0", "--scaling.chunks=4", "--scaling.threads=1", "--grounding.epochs=1"),
            *("--checkpoints.every_steps=3", f"--run.storage={tmp_path}", f"--run.name={name}"),
        )
        events: list[Event] = []
        launch.fit(preflight.check(config.load("demo", words)), events.append)
        losses = {event.step: event.metrics["loss"] for event in events if isinstance(event, StepDone)}
        return losses, [event.text for event in events if isinstance(event, Notice)]

    expected, _ = trained("undisturbed")
    monkeypatch.setattr(loop, "compute_gradients", with_little_memory)
    losses, notices = trained("full")
    assert losses == expected
    assert notices[0].startswith(
        "worker 0 has no GPU memory for 4 chunks at once (CUDA out of memory); the run resumes"
    )
    held = 1
    with pytest.raises(torch.OutOfMemoryError):
        trained("too-small")


def test_worker_with_one_chunk_or_accumulation_is_offered_none() -> None:
    grounding = config.Grounding(train="t", val="v", batch_size=8)

    def offered(workers: int, **scaling: Any) -> bool:
        settings = config.Settings(
            stages=("grounding",), grounding=grounding, scaling=config.Scaling(num_workers=workers, chunks=4, **scaling)
        )
        with (
            pytest.raises((torch.OutOfMemoryError, GraphsDoNotFit)) as caught,
            offer_accumulation(settings, 0, workers),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return caught.type is GraphsDoNotFit

    assert [offered(workers) for workers in (1, 2, 4)] == [True, True, False]
    assert not offered(1, accumulate=True)


def test_ranks_of_a_group_see_each_others_collectives_and_none_of_an_older_group(mailbox: Near) -> None:
    first, second = "1700000000000000000", "1700000000000000001"
    mailbox.exchange.remote(first, 0, 7)
    assert mailbox.exchange.remote(first, 1, 5) == {0: 7, 1: 5}
    assert mailbox.exchange.remote(second, 0, 1) == {0: 1}
    assert mailbox.exchange.remote(first, 1, 6) == {}
    assert mailbox.exchange.remote(second, 1, 2) == {0: 1, 1: 2}


def test_workers_open_a_run_of_relative_paths_as_the_driver_claimed_it(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers start in another folder, with absolute paths."""
    (tmp_path / "data").symlink_to(world.shards)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    words = [word.replace(str(world.shards), "data") for word in world.settings("--run.storage=runs")]
    run = preflight.check(config.load("demo", words))
    preflight.claim(run)
    sent = launch._to_workers(run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = launch._opened_by_worker(sent)
    assert opened.folder == run.folder
    assert opened.settings.grounding != run.settings.grounding
    _, start = recovery.begin(opened.folder, ["grounding"], InProcess(lambda _: None), opened.made_with)
    assert start.number == 1


@pytest.mark.parametrize(("gpu", "deterministic"), [(True, True), (True, False), (False, True)])
def test_workers_on_gpus_start_with_a_cublas_workspace_of_fixed_size(
    world: SmallWorld, gpu: bool, deterministic: bool
) -> None:
    words = [f"--scaling.use_gpu={gpu}", f"--scaling.deterministic={deterministic}"]
    environment = launch._environment(config.load("demo", world.settings(*words)))
    assert environment.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if gpu and deterministic else None)
    assert environment["MALLOC_ARENA_MAX"] == "1"
