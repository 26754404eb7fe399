"""StepTimer attributes every moment to one part, and the parts add up to the whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pretend_gpu import PretendGpu

from groundray import distributed
from groundray.loss.match_map import similarity
from groundray.training import timing
from groundray.training.timing import StepTimer, flop_counter


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def wait(self, moment: float) -> None:
        assert moment <= self.time

    def between(self, start: float, end: float) -> float:
        return end - start

    def peak_bytes(self) -> int:
        return 3 * 10**9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "_WallClock", lambda: clock)
    return clock


def test_time_of_a_step_is_attributed_to_its_parts(clock: Clock) -> None:
    def steps() -> Iterator[Any]:
        clock.time += 1
        yield "a step"

    timer = StepTimer(world_size=4)
    for _ in timer.timed_batches(steps()):
        with timer.step():
            with timer.span("forward"):
                clock.time += 2
                with distributed.communication():  # a collective within the forward pass
                    clock.time += 3
            with timer.span("backward"):
                clock.time += 8
            with distributed.communication():
                clock.time += 1
            with timer.span("optimizer"):
                clock.time += 4
        clock.time += 1
        assert timer.end_step(40).metrics() == {
            "samples_per_second": 2.0,
            "samples_per_second_per_worker": 0.5,
            "time/data_wait": 0.05,
            "time/forward": 0.1,
            "time/backward": 0.4,
            "time/communication": 0.2,
            "time/optimizer": 0.2,
            "time/other": pytest.approx(0.05),
            "peak_memory_gb": 3.0,
        }


def test_time_before_restart_is_left_out(clock: Clock) -> None:
    timer = StepTimer()
    with timer.span("forward"):
        clock.time += 9
    timer.restart()
    with timer.span("backward"):
        clock.time += 2
    fractions = timer.end_step(1).metrics()
    assert fractions["time/forward"] == 0
    assert fractions["time/backward"] == 1


def test_collectives_outside_a_step_are_not_timed(clock: Clock) -> None:
    timer = StepTimer()
    with pytest.raises(RuntimeError, match="lost"), timer.step():
        raise RuntimeError("a worker is lost")
    with distributed.communication():
        clock.time += 5
    assert timer.end_step(1).metrics()["time/communication"] == 0


def test_flop_counter_counts_match_maps() -> None:
    V, W = torch.randn(2, 9, 5, requires_grad=True), torch.randn(3, 4, 5)
    with flop_counter() as counter:
        similarity(V @ torch.randn(5, 5), W, torch.ones(3, 4, dtype=torch.bool)).sum().backward()
    product = 2 * (2 * 9) * 5 * 5
    # V's gradient is a product as large as the forward pass, that of a constant is none
    assert counter.get_total_flops() == 2 * product + 2 * (2 * 9) * 5 * (3 * 4)


def test_utilisation_is_a_fraction_of_the_given_peak() -> None:
    with PretendGpu():
        timer = StepTimer("cuda", precision="bf16", peak_tflops=2e-6)
        with timer.step():
            _ = torch.ones(10, 20, device="cuda") @ torch.ones(20, 30, device="cuda")
        metrics = timer.end_step(10).metrics()
    seconds = 10 / metrics["samples_per_second"]
    assert metrics["flop_utilisation"] == pytest.approx(2 * 10 * 20 * 30 / seconds / 2e6)
