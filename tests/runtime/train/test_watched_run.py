"""A run on Ray, as it is watched from outside: the worker that slows it, its gauges, and Ray Train's state of it."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from dataclasses import dataclass
from typing import Any

import pytest
import ray
from conftest import SmallWorld

from groundray import config
from groundray.runtime.train import launch
from groundray.runtime.train.gauges import GAUGES, TAGS
from groundray.runtime.train.reports import describe
from groundray.training import preflight
from groundray.training.events import EpochDone, Event, Notice, StepDone
from groundray.training.timing import PARTS

pytestmark = pytest.mark.thorough  # a run of several workers for what it exports

Shown = dict[tuple[str, frozenset[tuple[str, str]]], float]  # values of gauges, by name and tags


@dataclass(frozen=True)
class Watched:
    """A run of two workers of which rank 1 is slow, and what Ray has shown of it.

    Attributes:
        gauges: what a node of the cluster has exported of the run at one of its last validations, by name and tags.
        state: of the run, in Ray Train's state.
    """

    events: list[Event]
    gauges: Shown
    state: Any

    def values(self, name: str, rank: int) -> list[float]:
        return [value for (one, tags), value in self.gauges.items() if one == name and ("rank", str(rank)) in tags]

    def tagged(self, name: str, tag: str) -> dict[str, float]:
        """The values of a gauge on rank 0, by a tag."""
        on_rank_0 = ((dict(tags), value) for (one, tags), value in self.gauges.items() if one == name)
        return {tags[tag]: value for tags, value in on_rank_0 if tags["rank"] == "0"}


@pytest.fixture(scope="module")
def watched(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Watched:
    train_worker = launch._train_worker

    def with_slow_worker(config: dict[str, Any]) -> None:  # in the worker's process
        import ray.train
        import torch

        from groundray.stage.grounding import GroundingStage

        encode = GroundingStage.encode
        slow = ray.train.get_context().get_world_rank() == 1

        def slowed(*arguments: Any) -> Any:
            time.sleep(0.4 if slow and torch.is_grad_enabled() else 0.0)  # not in validations
            return encode(*arguments)

        GroundingStage.encode = slowed  # type: ignore[method-assign]
        train_worker(config)

    words = world.settings("--grounding.epochs=7", "--scaling.hang_minutes=0.5", "--grounding.validate_every_steps=5")
    words += [f"--run.storage={tmp_path_factory.mktemp('watched')}", "--run.name=watched"]
    events: list[Event] = []
    gauges: Shown = {}

    def observe(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochDone):
            gauges.update(exported("watched"))

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(launch, "_train_worker", with_slow_worker)
        patches.setenv("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        launch.fit(preflight.check(config.load("demo", words)), observe)
    states = ray.get_actor("train_v2_state_actor", namespace="_train_state_actor")
    runs: Any = ray.get(states.get_train_runs.remote())
    (state,) = runs.values()
    ray.kill(states)  # it would stay as long as the cluster
    return Watched(events, gauges, state)


def exported(run: str) -> Shown:
    """The gauges that this node exports of a run for Prometheus."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        lines = re.findall(r"^(ray_groundray_\w+){(.*)} (\S+)$", answer.read().decode(), re.MULTILINE)
    own = rf'\b({"|".join((*TAGS, *(one.tag for one in GAUGES.values() if one.tag)))})="([^"]*)"'
    found = {(name, frozenset(re.findall(own, tags))): float(value) for name, tags, value in lines}
    return {key: value for key, value in found.items() if ("run", run) in key[1]}


@pytest.mark.ray
def test_a_slow_worker_is_named(watched: Watched) -> None:
    (told,) = (event.text for event in watched.events if isinstance(event, Notice) and "is slow" in event.text)
    assert told.startswith(f"worker 1 on {socket.gethostname()} (")
    assert "Most of the difference is forward" in told
    last = [event.metrics for event in watched.events if isinstance(event, StepDone)][-1]
    assert last["slowest_worker"] == 1
    assert last["slowest_worker_ratio"] > 1.3


@pytest.mark.ray
def test_each_worker_exports_gauges_of_its_training(watched: Watched) -> None:
    steps = {event.step: event for event in watched.events if isinstance(event, StepDone)}
    for rank in range(2):
        (step,) = watched.values("ray_groundray_step", rank)
        shown = {name: watched.values(f"ray_groundray_{name}", rank) for name in ("loss", "learning_rate", "epoch")}
        of_step = steps[int(step)]
        assert shown["loss"] == [pytest.approx(of_step.metrics["loss"], rel=1e-6)]
        assert shown["learning_rate"] == [pytest.approx(of_step.metrics["learning_rate"])]
        assert shown["epoch"] == [of_step.epoch + 1]
        assert watched.values("ray_groundray_steps", rank) == [63]
        (speed,), (memory,) = (
            watched.values(f"ray_groundray_{name}", rank) for name in ("samples_per_second", "peak_memory_bytes")
        )
        assert 0 < speed < 8 / 0.1  # rank 1 sleeps for 0.4 s in each step of 8 samples
        assert 1e8 < memory < 1e11
    parts = watched.tagged("ray_groundray_time_fraction", "part")
    assert parts.keys() == {*PARTS, "other"}
    assert sum(parts.values()) == pytest.approx(1)
    assert {name.removeprefix("ray_") for name, _ in watched.gauges} == GAUGES.keys() - {
        *("groundray_flop_utilisation", "groundray_skipped_steps")  # of a GPU, and of a run with skipped steps
    }


@pytest.mark.ray
def test_validations_are_reported_to_ray(watched: Watched) -> None:
    validations = [event for event in watched.events if isinstance(event, EpochDone)]
    assert len(validations) == 14  # after 5 of the 9 steps of each of 7 epochs, and after all
    shown = watched.tagged("ray_groundray_validation", "metric")
    assert any(shown == pytest.approx(event.metrics, rel=1e-6) for event in validations)

    last, steps = validations[-1], [event for event in watched.events if isinstance(event, StepDone)]
    assert (watched.state.name, watched.state.status.value) == ("watched", "FINISHED")
    assert watched.state.status_detail == describe(
        {"stage": "grounding", "epoch": 7, "step": 63, "train_loss": steps[-1].metrics["loss"], **last.metrics}
    )
