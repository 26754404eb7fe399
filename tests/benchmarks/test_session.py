"""A session on a clock of the test's: which rows are measured, which are left out, and what is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest

from groundray.benchmarks.session import Case, LeftOut, Position, Session


class Bench:
    """Contenders that take some seconds for work 1, and record their calls."""

    def __init__(self, **seconds: float):
        self.now = 0.0
        self.calls: list[str] = []
        self.shown: list[Position] = []
        self.seconds = seconds
        self.interrupted_at = math.inf

    def session(self, repeats: int = 5, **settings: float) -> Session:
        return Session(repeats, show=self.shown.append, clock=lambda: self.now, **settings)  # type: ignore[arg-type]

    def run(self, name: str, work: float = 1.0) -> Callable[[], Mapping[str, float]]:
        def run() -> Mapping[str, float]:
            if self.now >= self.interrupted_at:
                raise KeyboardInterrupt
            self.calls.append(name)
            self.now += self.seconds[name] * work
            return {"number": float(len(self.calls))}

        return run

    def runs(self, work: float = 1.0) -> dict[str, Callable[[], Mapping[str, float]]]:
        return {name: self.run(name, work) for name in self.seconds}

    def measure(self, session: Session, works: Mapping[str, float], warm_up: bool = True) -> dict[str, dict[str, int]]:
        """Plan and measure cases of some work. Returns the number of rounds by case and contender."""
        session.plan([Case(title, tuple(self.seconds), work, warm_up) for title, work in works.items()])
        found = {}
        with session.until_stopped():
            for title, work in works.items():
                runs = session.interleaved(title, self.runs(work))
                if runs:
                    found[title] = {name: len(figures["number"]) for name, figures in runs.items()}
        return found


def test_contenders_take_turns_after_a_round_that_does_not_count() -> None:
    bench = Bench(A=1, B=1, C=1)
    session = bench.session(repeats=2)
    session.plan([Case("all", ("A", "B", "C"))])
    found = session.interleaved("all", bench.runs())
    assert bench.calls == list("ABC" * 3)
    assert found == {"A": {"number": [4.0, 7.0]}, "B": {"number": [5.0, 8.0]}, "C": {"number": [6.0, 9.0]}}


def test_without_a_warm_up_every_run_counts() -> None:
    bench = Bench(A=1, B=1)
    assert bench.measure(bench.session(repeats=2), {"all": 1}, warm_up=False) == {"all": {"A": 2, "B": 2}}
    assert bench.calls == list("ABAB")


def test_no_round_but_the_first_starts_later_than_max_seconds() -> None:
    bench = Bench(A=10)
    assert bench.measure(bench.session(max_seconds=15), {"few": 1, "many": 4}) == {"few": {"A": 2}, "many": {"A": 1}}


def test_without_a_limit_every_row_is_measured() -> None:
    bench = Bench(fast=1, slow=1000)
    session = bench.session()
    assert bench.measure(session, {"small": 1, "large": 100}) == {
        "small": {"fast": 5, "slow": 5},
        "large": {"fast": 5, "slow": 5},
    }
    assert session.left_out() == session.remarks() == []


def test_a_row_without_time_for_its_fewest_rounds_is_left_out() -> None:
    bench = Bench(fast=1, slow=5)
    session = bench.session(limit=100)
    # 36 s; of 64 that are left, large takes 4 * 4 for fast, 4 * 20 for slow, which is left out
    found = bench.measure(session, {"small": 1, "large": 4})
    assert found == {"small": {"fast": 5, "slow": 5}, "large": {"fast": 5}}
    assert session.left_out() == [LeftOut("large", "slow", "needs about 80 s, 48 s were left for it")]
    assert session.remarks() == [
        "left out  large: slow (needs about 80 s, 48 s were left for it)",
        "left out  what does not fit into 3 minutes; --full measures it",
    ]
    assert session.as_json()["left_out"] == [
        {"case": "large", "contender": "slow", "reason": "needs about 80 s, 48 s were left for it"}
    ]
    assert bench.now <= 100


def test_the_rounds_past_the_fewest_leave_later_rows_their_place() -> None:
    bench = Bench(A=10)
    session = bench.session(limit=85)
    # the second row needs 40 s: the first may have 4 runs, not 6
    assert bench.measure(session, {"first": 1, "second": 1}) == {"first": {"A": 3}, "second": {"A": 3}}
    assert session.left_out() == []
    assert session.remarks() == ["rounds  3 of 5  first", "rounds  3 of 5  second"]


def test_a_row_that_fits_no_more_takes_no_rounds_from_others() -> None:
    bench = Bench(A=10)
    session = bench.session(limit=85)
    found = bench.measure(session, {"first": 1, "second": 2})
    assert found == {"first": {"A": 5}}
    assert [row.case for row in session.left_out()] == ["second"]


def test_a_contender_never_seen_is_expected_to_take_as_long_as_the_slowest() -> None:
    bench = Bench(A=20, B=1)
    session = bench.session(repeats=1, limit=70)
    # A 20 + 20 s; B would take as long, so far as is known, and 30 s beside A's round are left
    assert bench.measure(session, {"all": 1}) == {"all": {"A": 1}}
    assert session.left_out() == [LeftOut("all", "B", "needs about 40 s, 30 s were left for it")]


def test_a_row_that_takes_longer_than_expected_is_left_out_after_its_first_run() -> None:
    bench = Bench(A=1, B=1)
    session = bench.session(limit=20)
    session.plan([Case("all", ("A", "B"))])
    turns = session.begin("all")
    turns.first("A", bench.run("A"))
    turns.first("B", bench.run("B", work=28))  # A's round of a second is done although time is up
    assert {name: len(of["number"]) for name, of in turns.rounds(bench.runs()).items()} == {"A": 1}
    assert session.left_out() == [LeftOut("all", "B", "needs about 28 s, 1 s were left for it")]


def test_a_case_is_hopeless_if_none_of_its_rows_fits() -> None:
    bench = Bench(A=1, B=2)
    session = bench.session(limit=30)
    session.plan([Case("one", ("A", "B")), Case("two", ("A", "B"), work=4), Case("three", ("A", "B"), work=8)])
    session.interleaved("one", bench.runs())
    assert bench.now == 12  # three rounds, as a fourth one would take A's place in the second case
    assert not session.begin("two").hopeless()  # A fits with 16 s, B does not with 32
    assert session.begin("three").hopeless()
    assert [(row.case, row.contender) for row in session.left_out()] == [("three", "A"), ("three", "B")]


def test_what_cannot_run_is_no_longer_planned() -> None:
    bench = Bench(A=1, B=1)
    session = bench.session(repeats=1)
    session.plan([Case("all", ("A", "B"))])
    turns = session.begin("all")
    turns.drop("A")
    turns.first("B", bench.run("B"))
    assert list(turns.rounds({"B": bench.run("B")})) == ["B"]
    assert session.left_out() == []
    assert (bench.shown[-1].done, bench.shown[-1].total) == (1, 2)


def test_a_contender_that_was_left_out_early_does_not_take_a_later_case_its_time() -> None:
    """Such as one that would take too long to build."""
    bench = Bench(A=0.2, B=0.2)
    session = bench.session(repeats=300, limit=30)
    session.plan([Case("one", ("A", "B")), Case("two", ("A", "B"), work=16)])
    for title in ("one", "two"):
        session.leave_out(title, "B", "takes long to build")
    found = {
        title: session.interleaved(title, {"A": bench.run("A", work)}) for title, work in (("one", 1), ("two", 16))
    }
    assert len(found["two"]["A"]["number"]) >= 3
    assert {row.contender for row in session.left_out()} == {"B"}
    assert bench.now <= 30


def test_a_contender_that_fails_is_named_and_the_others_are_measured() -> None:
    bench = Bench(A=1, B=1)
    runs = bench.runs()

    def fail() -> Mapping[str, float]:
        if bench.calls.count("B") == 3:  # after the warm-up and two rounds
            raise RuntimeError("out of memory")
        return bench.run("B")()

    session = bench.session()
    session.plan([Case("small", ("A", "B")), Case("large", ("A", "B"))])
    found = session.interleaved("small", runs | {"B": fail})
    assert {name: len(of["number"]) for name, of in found.items()} == {"A": 5, "B": 2}
    assert session.left_out() == [LeftOut("small", "B", "fails in round 3: RuntimeError: out of memory", failed=True)]
    assert session.has_failures
    assert session.remarks() == [
        "left out  small: B (fails in round 3: RuntimeError: out of memory)",
        "rounds  2 of 5  small",
    ]
    assert session.interleaved("large", bench.runs()).keys() == {"A", "B"}


def test_a_failure_before_anything_is_measured_is_raised() -> None:
    bench = Bench(A=1)

    def fail() -> Mapping[str, float]:
        raise RuntimeError("out of memory")

    session = bench.session()
    session.plan([Case("small", ("A",), warm_up=False)])
    with pytest.raises(RuntimeError, match="out of memory"):
        session.interleaved("small", {"A": fail})


def test_a_row_whose_length_was_chosen_by_the_time_left_is_measured_whatever_it_takes() -> None:
    bench = Bench(A=5)
    session = bench.session(repeats=1, limit=4)
    session.expect("A", 1.0)
    session.plan([Case("one", ("A",), work=5, warm_up=False)])
    session.once("one", "A", bench.run("A"))
    assert bench.calls == ["A"]
    assert session.has_measured
    assert session.left_out() == []


def test_the_position_tells_what_runs_how_many_runs_are_done_and_the_time_left() -> None:
    bench = Bench(A=1, B=3)
    bench.measure(bench.session(repeats=2), {"small": 1, "large": 10})
    seen = [(one.what, one.done, one.total, one.passed, one.left, one.new) for one in bench.shown]
    assert seen[0] == ("small: A", 0, 12, 0.0, None, True)
    assert seen[1] == ("small: B", 1, 12, 1.0, 65.0, True)  # as if B took as long as A
    assert seen[2] == ("small: A", 2, 12, 4.0, 128.0, False)
    assert seen[6] == ("large: A", 6, 12, 12.0, 120.0, True)
    assert seen[-1] == ("large: B", 11, 12, 102.0, 30.0, False)


def test_the_time_left_is_at_most_that_of_the_limit() -> None:
    bench = Bench(A=10)
    bench.measure(bench.session(limit=50), {"all": 1})
    assert [one.left for one in bench.shown] == [None, 40.0, 30.0, 20.0, 10.0]


def test_positions_within_a_row_are_half_a_second_apart() -> None:
    bench = Bench(A=0.125)
    bench.measure(bench.session(repeats=16), {"all": 1})
    assert len(bench.calls) == 17
    assert [one.passed for one in bench.shown] == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("at", "found", "cut_off"),
    [
        (5, {"A": 1}, ["small: B", "large: A", "large: B"]),  # in the first round
        (9, {"A": 1, "B": 1}, ["large: A", "large: B"]),  # in the second one, whose figures are not of all contenders
    ],
)
def test_whole_rounds_before_an_interruption_are_kept(at: float, found: dict[str, int], cut_off: list[str]) -> None:
    bench = Bench(A=1, B=3)
    bench.interrupted_at = at
    session = bench.session()
    assert bench.measure(session, {"small": 1, "large": 1}) == {"small": found}
    assert session.stopped
    assert session.as_json()["interrupted"]
    assert [f"{row.case}: {row.contender}" for row in session.left_out()] == cut_off
    assert {row.reason for row in session.left_out()} == {"interrupted"}
    assert session.remarks()[-1] == "rounds  1 of 5  small"


@pytest.mark.parametrize("at", [1, 4])
def test_an_interruption_before_anything_is_measured_goes_on(at: float) -> None:
    bench = Bench(A=1, B=3)
    bench.interrupted_at = at
    with pytest.raises(KeyboardInterrupt):
        bench.measure(bench.session(), {"small": 1})
