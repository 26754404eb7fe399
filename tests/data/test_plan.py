"""Properties of the plan: every sample once, the same order for the same seed, on any number of workers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import epoch_order

from groundray.data.plan import Cursor, Plan
from groundray.data.stream import windows

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple)
chunks = st.integers(1, 8)


@st.composite
def plans(draw: st.DrawFn, **fixed: bool) -> Plan:
    groups = draw(sizes)
    batch_size = draw(st.integers(1, sum(groups) if fixed.get("drop_last", True) else 120))
    return Plan(
        groups,
        batch_size=batch_size,
        chunks=min(batch_size, draw(chunks)),
        window=draw(st.integers(1, 100)),
        seed=draw(st.integers(0, 2**63)),
        **fixed,
    )


def epoch_rows(plan: Plan, epoch: int = 0) -> list[int]:
    return [row for step in range(plan.steps) for row in plan.batch(epoch, step).tolist()]


@settings(deadline=None)
@given(plans(drop_last=True), st.integers(0, 5))
def test_training_repeats_no_row_and_drops_the_stated_number(plan: Plan, epoch: int) -> None:
    rows = epoch_rows(plan, epoch)
    assert len(set(rows)) == len(rows) == plan.rows - plan.dropped
    assert set(rows) <= set(range(plan.rows))
    assert plan.dropped < plan.batch_size


@settings(deadline=None)
@given(plans(drop_last=False, shuffle=False))
def test_validation_has_every_row_once_in_chunks_of_equal_size_to_one_sample(plan: Plan) -> None:
    assert sorted(epoch_rows(plan)) == list(range(plan.rows))
    for step in range(plan.steps):
        lengths = [len(plan.chunk(0, step, chunk)) for chunk in range(plan.chunks)]
        assert max(lengths) - min(lengths) <= 1


@settings(deadline=None)
@given(plans(drop_last=False, shuffle=True))
def test_shuffled_epoch_without_drop_last_has_every_row_once(plan: Plan) -> None:
    assert sorted(epoch_rows(plan, 3)) == list(range(plan.rows))


@settings(deadline=None)
@given(plans(drop_last=True), st.data())
def test_chunks_of_whole_batches_have_the_sizes_of_the_plan(plan: Plan, data: st.DataObject) -> None:
    sizes = [plan.chunk_size(chunk) for chunk in range(plan.chunks)]
    assert sum(sizes) == plan.batch_size
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1
    step = data.draw(st.integers(0, plan.steps - 1))
    assert [len(plan.chunk(1, step, chunk)) for chunk in range(plan.chunks)] == sizes


def test_eight_workers_share_a_batch_of_180() -> None:
    plan = Plan((100,) * 10, batch_size=180, chunks=8)
    sizes = [[len(plan.chunk(0, 3, chunk)) for chunk in plan.owned(rank, 8)] for rank in range(8)]
    assert sizes == [[23]] * 4 + [[22]] * 4


def test_order_depends_on_seed_and_epoch_alone() -> None:
    plan = Plan((30, 20, 50), batch_size=10, chunks=2, window=40, seed=7)
    same = Plan((30, 20, 50), batch_size=10, chunks=2, window=40, seed=7)
    other = Plan((30, 20, 50), batch_size=10, chunks=2, window=40, seed=8)
    assert epoch_rows(plan) == epoch_rows(same)
    assert epoch_rows(plan) != epoch_rows(other)
    assert epoch_rows(plan, 0) != epoch_rows(plan, 1)


def test_order_equals_that_of_the_first_release() -> None:
    """The order must never change, or a run that is resumed with a later release would repeat samples."""
    plan = Plan((4, 2, 3, 3), batch_size=4, chunks=2, window=8, seed=0)
    assert epoch_rows(plan) == [10, 5, 1, 7, 4, 9, 0, 8, 6, 11, 3, 2]


@settings(deadline=None)
@given(plans(drop_last=True), st.integers(0, 5))
def test_order_equals_that_of_a_list_of_all_rows(plan: Plan, epoch: int) -> None:
    expected = epoch_order(list(plan.group_sizes), plan.batch_size, plan.chunks, plan.window, plan.seed, epoch)
    chunks = [[plan.chunk(epoch, step, chunk).tolist() for chunk in range(plan.chunks)] for step in range(plan.steps)]
    assert chunks == expected


def test_ranks_split_the_same_batch() -> None:
    plan = Plan((17, 9, 30), batch_size=12, chunks=4, window=24, seed=1)
    for world_size in (1, 2, 4):
        batch = [
            row
            for rank in range(world_size)
            for chunk in plan.owned(rank, world_size)
            for row in plan.chunk(0, 2, chunk).tolist()
        ]
        assert batch == plan.batch(0, 2).tolist()


def test_world_size_that_does_not_divide_the_chunks_raises() -> None:
    with pytest.raises(ValueError, match="divides 4 chunks, got 3"):
        Plan((17, 9, 30), batch_size=12, chunks=4).owned(0, 3)


def test_a_chunk_reads_only_its_span_of_row_groups() -> None:
    plan = Plan((10,) * 20, batch_size=20, chunks=2, window=40, seed=3)
    opened = [{int(row) // 10 for step in range(plan.steps) for row in plan.chunk(0, step, chunk)} for chunk in (0, 1)]
    assert opened[0] | opened[1] == set(range(20))
    assert not opened[0] & opened[1]


def test_rows_are_shuffled_within_a_window() -> None:
    plan = Plan((10,) * 20, batch_size=10, chunks=1, window=50, seed=3)
    first_window = {int(row) for step in range(5) for row in plan.batch(0, step)}
    assert len({row // 10 for row in first_window}) == 5  # five complete row groups
    assert len({int(row) // 10 for row in plan.batch(0, 0)}) > 1  # mixed


@settings(deadline=None)
@given(plans(drop_last=True), st.integers(1, 3), st.data())
def test_windows_from_a_cursor_cover_the_remaining_steps(plan: Plan, epochs: int, data: st.DataObject) -> None:
    cursor = Cursor(data.draw(st.integers(0, epochs - 1)), data.draw(st.integers(0, plan.steps - 1)))
    steps = [(w.epoch, step) for w in windows(plan, cursor, epochs) for step in range(w.first, w.last)]
    every = [(epoch, step) for epoch in range(epochs) for step in range(plan.steps)]
    assert steps == [place for place in every if place >= (cursor.epoch, cursor.step)]


@settings(deadline=None)
@given(plans(drop_last=False))
def test_spans_cover_the_rows_without_gap(plan: Plan) -> None:
    edges = [plan.span(chunk) for chunk in range(plan.chunks)]
    assert edges[0][0] == 0
    assert edges[-1][1] == plan.rows
    assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))


@settings(deadline=None)
@given(sizes, st.integers(1, 20), st.integers(1, 8))
def test_equal_chunks_have_the_spans_of_the_first_release(groups: tuple[int, ...], size: int, parts: int) -> None:
    """Equal ones, of which the first have a row more. They must never change, as the order."""
    plan = Plan(groups, batch_size=size * parts, chunks=parts, drop_last=False)
    rows, more = divmod(plan.rows, parts)
    lengths = [rows + (chunk < more) for chunk in range(parts)]
    assert [end - start for start, end in map(plan.span, range(parts))] == lengths


@pytest.mark.parametrize(
    ("groups", "batch_size", "parts", "message"),
    [
        ((5,), 3, 4, "batch_size of at least 4, a sample a chunk, got 3"),
        ((), 2, 1, "empty data set"),
        ((3,), 4, 1, "got a data set of 3"),
    ],
)
def test_impossible_plan_raises(groups: tuple[int, ...], batch_size: int, parts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(groups, batch_size=batch_size, chunks=parts)


def test_step_beyond_the_epoch_raises() -> None:
    plan = Plan((10,), batch_size=5)
    with pytest.raises(IndexError, match="expected step < 2"):
        plan.chunk(0, 2, 0)


def test_rows_are_row_numbers() -> None:
    assert Plan((10,), batch_size=5).batch(0, 0).dtype == np.int64
