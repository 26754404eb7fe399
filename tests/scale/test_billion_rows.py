"""The plan of 10^9 samples: the layout of an epoch once, then microseconds a chunk."""

from __future__ import annotations

import pickle
import timeit

import numpy as np
import pytest

from groundray.data.plan import Plan


def fastest(call: object, number: int) -> float:
    """Return the seconds of a call, of the fastest of five rounds: the machine may be busy."""
    return min(timeit.repeat(call, number=number, repeat=5)) / number  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """4 million row groups of 250 rows in 64 chunks, with the window that they need."""
    generator = np.random.default_rng(0)
    return Plan(generator.integers(200, 300, 4_000_000), batch_size=512, chunks=64, window=53_248)


def test_a_chunk_of_a_billion_rows_takes_microseconds(plan: Plan) -> None:
    assert plan.rows > 0.99e9
    plan.chunk(0, 0, 0)  # makes the layout
    assert fastest(lambda: plan.chunk(0, 0, 0), number=1000) < 20e-6
    steps = iter(range(plan.window_steps, plan.steps, plan.window_steps))  # of a new window each
    assert fastest(lambda: plan.chunk(0, next(steps), 1), number=10) < 1e-3


def test_windows_of_a_billion_rows_have_every_row_at_most_once(plan: Plan) -> None:
    rows = np.concatenate([plan.chunk(0, step, 5) for step in range(40_000, 40_000 + 3 * plan.window_steps)])
    assert len(np.unique(rows)) == len(rows) == 3 * plan.window_steps * plan.chunk_size(5)
    assert 0 <= rows.min() <= rows.max() < plan.rows


def test_windows_of_all_chunks_stay_cached(plan: Plan) -> None:
    for step in (0, 1):
        for chunk in range(64):
            plan.chunk(0, step, chunk)
    assert plan._window.cache_info().hits >= 64  # type: ignore[attr-defined]


def test_a_pickled_plan_is_its_row_groups_alone(plan: Plan) -> None:
    plan.chunk(0, 0, 0)
    content = pickle.dumps(plan, protocol=5)
    assert len(content) < 8 * len(plan.group_sizes) + 1000
    assert np.array_equal(pickle.loads(content).chunk(0, 7, 3), plan.chunk(0, 7, 3))  # noqa: S301  written above
