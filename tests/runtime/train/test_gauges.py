"""What a worker's events say in its gauges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import own_time
import pytest

from groundray.runtime.train import gauges
from groundray.runtime.train.gauges import GAUGES, Gauges
from groundray.training.events import EpochDone, Notice, StageDone, StepDone

METRICS = {"loss": 2.0, "learning_rate": 0.1, "samples_per_second": 50.0, "time/data_wait": 0.25, "peak_memory_gb": 1.5}


def step(number: int, **metrics: float) -> StepDone:
    return StepDone("grounding", 0, number, 20, METRICS | metrics)


class Recorder:
    """In place of Ray's gauge: keeps what is set in `recorded`, by name and tags."""

    def __init__(self, recorded: dict[tuple[str, ...], list[float]], name: str, keys: tuple[str, ...]):
        self._recorded, self._name, self._keys = recorded, name, keys

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self._tags = tags

    def set(self, value: float, tags: dict[str, str]) -> None:
        tags = self._tags | tags
        assert tags.keys() == set(self._keys)
        self._recorded.setdefault((self._name, *(tags[key] for key in self._keys)), []).append(value)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], list[float]]:
    found: dict[tuple[str, ...], list[float]] = {}
    monkeypatch.setattr(gauges, "Gauge", lambda name, description, keys: Recorder(found, name, keys))
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    own_time.give(monkeypatch, gauges, monotonic=lambda: now[0])
    return now


def test_a_step_a_second_is_recorded_and_the_last_before_a_validation(
    recorded: dict[tuple[str, ...], list[float]], clock: list[float]
) -> None:
    worker = Gauges("demo", 1)
    for number in range(1, 10):
        clock[0] += 0.3
        worker.observe(step(number, loss=float(number)))
    assert recorded["groundray_loss", "demo", "grounding", "1"] == [1, 5, 9]  # more than a second apart
    clock[0] += 0.3
    worker.observe(step(10, loss=10.0))
    worker.observe(EpochDone("grounding", 0, 2, 10, True, {"recall@10": 0.5}))
    assert recorded["groundray_loss", "demo", "grounding", "1"] == [1, 5, 9, 10]
    assert recorded["groundray_step", "demo", "grounding", "1"] == [1, 5, 9, 10]
    worker.observe(EpochDone("grounding", 0, 2, 10, True, {"recall@10": 0.5}))
    assert len(recorded["groundray_step", "demo", "grounding", "1"]) == 4  # of no new step


def test_values_have_base_units_and_each_its_tags(recorded: dict[tuple[str, ...], list[float]]) -> None:
    worker = Gauges("demo", 0)
    worker.observe(Notice("not of a step"))
    assert not recorded
    worker.observe(step(3))
    here = ("demo", "grounding", "0")
    assert recorded == {
        ("groundray_loss", *here): [2.0],
        ("groundray_learning_rate", *here): [0.1],
        ("groundray_samples_per_second", *here): [50.0],
        ("groundray_peak_memory_bytes", *here): [1.5e9],
        ("groundray_time_fraction", *here, "data_wait"): [0.25],
        ("groundray_step", *here): [3],
        ("groundray_steps", *here): [20],
        ("groundray_epoch", *here): [1],
    }


def test_validations_come_from_rank_0_and_a_stage_that_has_ended_has_no_speed(
    recorded: dict[tuple[str, ...], list[float]],
) -> None:
    for rank in range(2):
        worker = Gauges("demo", rank)
        worker.observe(step(20))
        worker.observe(EpochDone("grounding", 1, 2, 20, True, {"loss": 1.0, "recall@10": 0.5}))
        worker.observe(StageDone("grounding", 20, {"loss": 1.0}))
        assert recorded["groundray_samples_per_second", "demo", "grounding", str(rank)] == [50.0, 0.0]
    assert {key: value for key, value in recorded.items() if key[0] == "groundray_validation"} == {
        ("groundray_validation", "demo", "grounding", "0", "loss"): [1.0],
        ("groundray_validation", "demo", "grounding", "0", "recall@10"): [0.5],
    }


def test_ray_takes_tags_of_any_name() -> None:
    worker = Gauges("größe", 0)
    worker.observe(step(1, loss=float("nan")))
    worker.observe(EpochDone("grounding", 0, 1, 1, False, {"précision": 1.0}))


def test_the_guide_names_every_gauge() -> None:
    page = (Path(__file__).parents[3] / "docs" / "guides" / "monitoring.md").read_text()
    rows: list[Any] = [line for line in page.splitlines() if line.startswith("| `ray_groundray_")]
    named = {row.split("`")[1].removeprefix("ray_") for row in rows}
    assert {name for name in named if not name.startswith("groundray_search_")} == GAUGES.keys()
