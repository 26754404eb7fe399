"""A rank that is slower than the others is named, whatever the collectives in which the others wait for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest

from groundray.training.stragglers import SLOW_WINDOWS, WINDOW_STEPS, RankTimes, Stragglers
from groundray.training.timing import PARTS

FAST = {**dict.fromkeys((*PARTS, "other"), 0.0), "data_wait": 0.1, "forward": 0.3, "backward": 0.6}  # a second


class Group:
    """The ranks of a group. Each takes steps of its own time, and waits for the slowest."""

    def __init__(self, size: int):
        self.told: list[str] = []
        self.ranks = [Stragglers(f"node-{rank} (10.0.0.{rank})", size, self.told.append) for rank in range(size)]

    def window(self, slower: Mapping[int, Mapping[str, float]], steps: int = WINDOW_STEPS, stage: str = "s") -> None:
        """Take some steps, and exchange.

        Args:
            slower: what the steps of ranks take beyond FAST, by part.
        """
        self.steps(lambda rank: slower.get(rank, {}), steps, stage)
        self.exchange()

    def steps(self, more: Callable[[int], Mapping[str, float]], steps: int, stage: str = "s") -> None:
        for _ in range(steps):
            taken = [{part: took + more(rank).get(part, 0.0) for part, took in FAST.items()} for rank in self.indices]
            longest = max(sum(seconds.values()) for seconds in taken)
            for one, seconds in zip(self.ranks, taken, strict=True):
                one.add(stage, seconds | {"communication": 0.05 + longest - sum(seconds.values())})

    def exchange(self, *missing: int) -> None:
        self.ranks[0].compare({rank: self.ranks[rank].own for rank in self.indices if rank not in missing})

    @property
    def indices(self) -> range:
        return range(len(self.ranks))

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.ranks[0].metrics


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("part", ["data_wait", "forward", "backward", "optimizer", "other"])
def test_a_slow_rank_is_named_once_with_its_machine_and_the_part_that_is_slow(size: int, part: str) -> None:
    group = Group(size)
    group.window({1: {part: 0.5}})
    assert group.metrics == {}  # a window starts at the first exchange
    for window in range(1, 4 * SLOW_WINDOWS):
        group.window({1: {part: 0.5}})
        assert group.metrics == {"slowest_worker": 1.0, "slowest_worker_ratio": pytest.approx(1.5)}
        assert len(group.told) == (window >= SLOW_WINDOWS)
    assert group.told[0].startswith("worker 1 on node-1 (10.0.0.1) is slow: 1.5 s a step without communication")
    assert f"difference is {part} ({FAST[part] + 0.5:.3g} s, median {FAST[part]:.3g} s)" in group.told[0]


def test_noise_names_nobody() -> None:
    draw = random.Random(0)
    group = Group(16)
    for _ in range(100):
        group.steps(lambda rank: {"backward": draw.choice((0.0, 0.0, 0.0, 2.0))}, 20)
        group.exchange()
    assert group.told == []
    assert 1 < group.metrics["slowest_worker_ratio"] < 3


def test_a_rank_is_slow_in_windows_in_a_row() -> None:
    group = Group(3)
    for _ in range(5):
        group.window({})
        for _ in range(SLOW_WINDOWS - 1):
            group.window({2: {"other": 3.0}})  # a checkpoint
    assert group.told == []


def test_slow_ranks_are_named_together_and_others_when_they_become_slow() -> None:
    group = Group(5)
    for _ in range(10):
        group.window({3: {"forward": 0.5}, 4: {"forward": 0.6}})
    assert len(group.told) == 1
    assert group.told[0].startswith("worker 4 on node-4 (10.0.0.4) is slow (so is worker 3): 1.6 s")
    for _ in range(10):
        group.window({1: {"forward": 0.5}, 4: {"forward": 0.5}})
    assert len(group.told) == 2
    assert group.told[1].startswith("worker 1 on node-1")


def test_ranks_that_are_equal_have_a_ratio_of_one() -> None:
    group = Group(4)
    for _ in range(10):
        group.window({})
    assert group.metrics["slowest_worker_ratio"] == pytest.approx(1)
    assert group.told == []


def test_a_difference_that_is_little_of_a_step_is_not_told() -> None:
    """Where communication takes most of it."""
    group = Group(2)
    for _ in range(10):
        for _ in range(WINDOW_STEPS):
            for rank, one in enumerate(group.ranks):
                one.add("s", FAST | {"forward": 0.3 + 0.5 * rank, "communication": 20.0})
        group.exchange()
    assert group.metrics["slowest_worker_ratio"] == pytest.approx(1.5)
    assert group.told == []


def test_nothing_is_compared_before_every_rank_has_sent_its_times() -> None:
    group = Group(3)
    for _ in range(10):
        group.steps(lambda rank: {"forward": float(rank)}, WINDOW_STEPS)
        group.exchange(2)
    assert (group.metrics, group.told) == ({}, [])
    group.exchange()
    group.window({2: {"forward": 1.0}}, WINDOW_STEPS - 1)
    assert group.metrics == {}  # too few steps
    group.window({2: {"forward": 1.0}}, 1)
    assert group.metrics["slowest_worker"] == 2.0


def test_steps_of_two_stages_are_not_compared() -> None:
    group = Group(2)
    group.window({})
    group.window({})
    group.ranks[1].add("next", {part: 100 * took for part, took in FAST.items()} | {"communication": 0.0})
    group.exchange()  # rank 0 is in the stage before
    assert group.metrics["slowest_worker_ratio"] == pytest.approx(1)
    group.window({}, stage="next")
    assert group.metrics == {}
    group.window({0: {"backward": 1.0}}, stage="next")
    assert group.metrics == {"slowest_worker": 0.0, "slowest_worker_ratio": pytest.approx(2)}


def test_ranks_that_have_sent_other_numbers_of_steps_are_compared_by_the_step() -> None:
    group = Group(2)
    group.window({})
    for _ in range(2 * SLOW_WINDOWS):
        before = group.ranks[1].own
        group.steps(lambda rank: {}, 3 * WINDOW_STEPS)
        late: dict[int, RankTimes] = {0: group.ranks[0].own, 1: before}
        group.ranks[0].compare(late)
    assert group.metrics["slowest_worker_ratio"] == pytest.approx(1)
