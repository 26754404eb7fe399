"""A session of measurements: which rows fit into its time, their rounds in turns, its progress, and a stop by Ctrl-C.

A benchmark plans its cases, and then begins one after the other. In each, every contender runs once, uncounted, and
then the rounds begin. What a run takes is expected from the same contender's last runs, scaled by the work of the case.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

FEWEST_ROUNDS = 3  # that a row has room for, or it is left out
GRACE_SECONDS = 1.0  # a first round that takes less is done although time is up
SHOW_SECONDS = 0.5  # between two signs of progress within a row: a line takes time from no run, but from the session
INTERRUPTED = "interrupted"
Figures = Mapping[str, float]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Case:
    """A case of the table: the same sizes for all contenders.

    Attributes:
        work: of a run, relative to a run of the same contender in other cases.
        warm_up: whether each contender runs once more, uncounted.
    """

    title: str
    contenders: tuple[str, ...]
    work: float = 1.0
    warm_up: bool = True


@dataclass(frozen=True)
class LeftOut:
    """A row that was not measured, and the reason.

    Attributes:
        failed: whether the contender failed, as opposed to being cut off or having no time.
    """

    case: str
    contender: str
    reason: str
    failed: bool = False


@dataclass(frozen=True)
class Position:
    """How far a session is.

    Attributes:
        what: is measured or prepared now.
        done, total: numbers of runs.
        passed: seconds since the session began.
        left: seconds until it ends, about; None if nothing has been measured yet.
        new: whether a row or a preparation begins.
    """

    what: str
    done: int
    total: int
    passed: float
    left: float | None
    new: bool


class Session:
    """Measures the cases of a benchmark, all of them or those that fit into a time.

    Args:
        repeats: rounds of each case.
        max_seconds: time of a case after which no further round starts.
        limit: seconds for everything; None measures every row.
        fewest_rounds: rounds that a row needs room for; fewer are done only if they take longer than expected.
        show: receives the position before runs and preparations.
        clock: returns seconds; for tests.
        started: when the session began, by the clock; now by default.
    """

    def __init__(
        self,
        repeats: int,
        max_seconds: float = math.inf,
        limit: float | None = None,
        fewest_rounds: int = FEWEST_ROUNDS,
        show: Callable[[Position], None] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
        started: float | None = None,
    ):
        self.repeats, self.max_seconds, self.limit = repeats, max_seconds, limit
        self.fewest_rounds = min(fewest_rounds, repeats)
        self.clock, self._show = clock, show
        self._started = clock() if started is None else started
        self._shown = -math.inf
        self._cases: dict[str, Case] = {}
        self._begun: set[str] = set()  # titles of cases
        self._runs_left: dict[str, dict[str, int]] = {}
        self._rates: dict[str, float] = {}  # seconds for work 1, by contender
        self._done = 0
        self._left_out: list[LeftOut] = []
        self._rounds: dict[str, dict[str, int]] = {}  # done, by case and contender
        self.stopped = False

    def plan(self, cases: Sequence[Case]) -> None:
        """Name the cases, in the order in which they will begin: those that matter most, or are quickest, first."""
        for case in cases:
            self._cases[case.title] = case
            self._runs_left[case.title] = dict.fromkeys(case.contenders, self.repeats + case.warm_up)

    @property
    def has_measured(self) -> bool:
        """Whether a row has been measured."""
        return bool(self._rounds)

    def left(self) -> float:
        """Return the seconds that are left, infinity without a limit."""
        return math.inf if self.limit is None else self.limit - self.passed()

    def passed(self) -> float:
        """Return the seconds since the session began."""
        return self.clock() - self._started

    def note(self, what: str) -> None:
        """Tell what is prepared next."""
        self.tell(what, new=True)

    def begin(self, title: str) -> Turns:
        """Begin a case that was planned.

        Raises:
            KeyboardInterrupt: the session was stopped.
        """
        if self.stopped:
            raise KeyboardInterrupt
        self._begun.add(title)
        return Turns(self, self._cases[title], self._runs_left[title])

    def interleaved(self, title: str, runs: Mapping[str, Callable[[], Figures]]) -> dict[str, dict[str, list[float]]]:
        """Begin a case and run its contenders in turns, A B C A B C ..., after a warm-up if that is planned.

        Returns:
            The figures of each round by contender and name, without those that were left out.
        """
        turns = self.begin(title)
        if self._cases[title].warm_up:
            for name, run in runs.items():
                turns.first(name, run)
        return turns.rounds(runs)

    def once(self, title: str, contender: str, run: Callable[[], Figures]) -> None:
        """Begin a case and run its contender once, without a look at the time that is left."""
        self.begin(title).once(contender, run)

    @contextlib.contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Let a KeyboardInterrupt end the context quietly, if a row has been measured by then."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.has_measured:
                raise
            self.stopped = True

    def leave_out(self, title: str, contender: str, reason: str, failed: bool = False) -> None:
        """Record a row that is not measured, for want of time or because the contender fails."""
        self._runs_left[title][contender] = 0
        self._left_out.append(LeftOut(title, contender, reason, failed))

    def left_out(self) -> list[LeftOut]:
        """Return the rows that were not measured, with those that an interruption has cut off."""
        cut_off = [
            LeftOut(title, name, INTERRUPTED)
            for title, runs in self._runs_left.items()
            for name, count in runs.items()
            if self.stopped and count and name not in self._rounds.get(title, {})
        ]
        return [*self._left_out, *cut_off]

    def remarks(self) -> list[str]:
        """Return lines about the rows that were left out, by case, and about cases of fewer rounds than asked for."""
        lines = []
        for title in self._cases:
            out = [f"{row.contender} ({row.reason})" for row in self.left_out() if row.case == title]
            lines += [f"left out  {title}: {', '.join(out)}"] if out else []
        if any(not row.failed for row in self._left_out):
            lines.append("left out  what does not fit into 3 minutes; --full measures it")
        for title, rounds in self._rounds.items():
            if (fewest := min(rounds.values(), default=self.repeats)) < self.repeats:
                lines.append(f"rounds  {fewest} of {self.repeats}  {title}")
        return lines

    @property
    def has_failures(self) -> bool:
        """Whether a contender has failed."""
        return any(row.failed for row in self._left_out)

    def as_json(self) -> dict[str, Any]:
        """Return what a report says of the session."""
        rows = [{"case": row.case, "contender": row.contender, "reason": row.reason} for row in self.left_out()]
        return {"left_out": rows, "interrupted": self.stopped}

    def expected(self, contender: str, work: float) -> float | None:
        """Return the seconds of a run: from the contender's own runs, else the longest of others'; None without any."""
        if not self._rates:
            return None
        return work * self._rates.get(contender, max(self._rates.values()))

    def expect(self, contender: str, seconds: float) -> None:
        """Expect these seconds of a contender's run of work 1."""
        self._rates[contender] = seconds

    def record(self, case: Case, contender: str, seconds: Sequence[float]) -> None:
        """Expect of the contender's next runs what these have taken."""
        self._rates[contender] = statistics.median(seconds) / case.work

    def count(self, case: Case, contender: str) -> None:
        """Count a run as done."""
        self._done += 1
        self._runs_left[case.title][contender] -= 1

    def keep(self, case: Case, rounds: Mapping[str, int]) -> None:
        """Record the numbers of rounds in which the contenders of a case were measured."""
        self._rounds[case.title] = dict(rounds)

    def tell(self, what: str, new: bool) -> None:
        """Show the position, within a row only if the last time was a while ago."""
        if new or self.clock() - self._shown >= SHOW_SECONDS:
            self._shown = self.clock()
            total = self._done + sum(sum(runs.values()) for runs in self._runs_left.values())
            self._show(Position(what, self._done, total, self.passed(), self._seconds_left(), new))

    def later_rows(self, seconds: float) -> int:
        """Return how many rows of cases that have not begun fit into some seconds, the first ones first."""
        count = 0
        for title, case in self._cases.items():
            if title in self._begun:
                continue
            for name in (name for name, left in self._runs_left[title].items() if left):
                needs = (self.expected(name, case.work) or 0) * (case.warm_up + self.fewest_rounds)
                if needs <= seconds:
                    seconds -= needs
                    count += 1
        return count

    def _seconds_left(self) -> float | None:
        """Return about the seconds until the end: of all runs that are left, at most those of the limit."""
        if not self._rates:
            return None
        seconds = 0.0
        for title, case in self._cases.items():
            left = {name: runs for name, runs in self._runs_left[title].items() if runs}
            each = {name: self.expected(name, case.work) or 0 for name in left}
            if left:
                rounds = min(self.repeats, max(left.values()))
                first = sum(each[name] for name, runs in left.items() if runs > self.repeats)
                a_round = sum(each.values())
                seconds += first + min(rounds * a_round, self.max_seconds + a_round)
        return max(0.0, min(seconds, self.left()))


class Turns:
    """The runs of one case.

    Args:
        runs_left: of each contender, which the session changes.
    """

    def __init__(self, session: Session, case: Case, runs_left: dict[str, int]):
        self._session, self._case, self._runs_left = session, case, runs_left
        self._ran: list[str] = []

    def first(self, contender: str, run: Callable[[], Value]) -> Value | None:
        """Run a contender once, uncounted, and return what the run does; None if the row is left out."""
        if not self._fits(contender):
            return None
        return self._timed(contender, run)

    def once(self, contender: str, run: Callable[[], Figures]) -> None:
        """Run a contender once, without a look at the time that is left."""
        self._timed(contender, run)
        self._session.keep(self._case, {contender: 1})

    def drop(self, contender: str) -> None:
        """Take a contender that cannot run out of the plan."""
        self._runs_left[contender] = 0

    def rounds(self, runs: Mapping[str, Callable[[], Figures]]) -> dict[str, dict[str, list[float]]]:
        """Run the contenders that are left in turns, A B C A B C ...

        A machine that slows down during the benchmark slows all contenders alike. The rounds end early where the next
        one would take longer than what is left, or a later row its place. A contender that fails is left out if
        something else has been measured, which would be lost otherwise.

        Returns:
            The figures of each whole round, by contender and name.
        """
        session = self._session
        names = [name for name in runs if self._runs_left[name]]
        taken: dict[str, list[float]] = {name: [] for name in names}
        found: dict[str, dict[str, list[float]]] = {}
        started, turn = session.clock(), 0
        while turn < session.repeats and names and (not turn or self._goes_on(names, turn, started)):
            values: dict[str, Figures] = {}
            try:
                for name in names:
                    if turn or self._fits(name):
                        start = self._start(name, new=not turn and name not in self._ran)
                        try:
                            values[name] = runs[name]()
                        except Exception as error:
                            if not (session.has_measured or found or values):
                                raise
                            reason = f"fails in round {turn + 1}: {type(error).__name__}: {error}"
                            session.leave_out(self._case.title, name, reason, failed=True)
                        else:
                            taken[name].append(session.clock() - start)
                            self._end(name, taken[name])
            except KeyboardInterrupt:
                if not found and not values:
                    raise
                session.stopped = True
                if turn:
                    break
            names, turn = list(values), turn + 1
            for name, figures in values.items():
                for figure, value in figures.items():
                    found.setdefault(name, {}).setdefault(figure, []).append(value)
            if session.stopped:
                break
        if found:
            session.keep(self._case, {name: len(next(iter(of.values()))) for name, of in found.items()})
        if not session.stopped:
            self._runs_left.update(dict.fromkeys(self._runs_left, 0))
        return found

    def _goes_on(self, names: Sequence[str], turn: int, started: float) -> bool:
        """Return whether a round after the first one starts."""
        session = self._session
        if session.clock() - started > session.max_seconds:
            return False
        left, needs = session.left(), sum(session.expected(name, self._case.work) or 0 for name in names)
        if needs > left:
            return False
        return turn < session.fewest_rounds or session.later_rows(left - needs) == session.later_rows(left)

    def hopeless(self) -> bool:
        """Return whether there is no time for any of the contenders; then they are left out."""
        shortages = {name: self._shortage(name) for name in self._case.contenders}
        if not all(shortages.values()):
            return False
        for name, reason in shortages.items():
            self._session.leave_out(self._case.title, name, reason)
        return True

    def _fits(self, contender: str) -> bool:
        """Return whether there is time for a row, and leave it out if there is none."""
        if reason := self._shortage(contender):
            self._session.leave_out(self._case.title, contender, reason)
        return not reason

    def _shortage(self, contender: str) -> str:
        """Return what time a row lacks, if any: for its first run, and for the fewest rounds of this row and of those
        before it. A row that has had its first run needs time for the next one only."""
        session, case = self._session, self._case
        expected = session.expected(contender, case.work)
        if expected is None:
            return ""
        if contender in self._ran:
            needs, left = expected, max(GRACE_SECONDS, session.left())
        else:
            needs = expected * (session.fewest_rounds + case.warm_up)
            before = [name for name in self._ran if self._runs_left[name] == session.repeats]
            kept = sum(session.expected(name, case.work) or 0 for name in before) * session.fewest_rounds
            left = session.left() - kept
        if needs <= left:
            return ""
        return f"needs about {math.ceil(needs)} s, {max(0, math.floor(left))} s were left for it"

    def _timed(self, contender: str, run: Callable[[], Value]) -> Value:
        """Run a contender for the first time, and expect of its next runs what this one took."""
        started = self._start(contender, new=True)
        value = run()
        self._end(contender, [self._session.clock() - started])
        return value

    def _start(self, contender: str, new: bool) -> float:
        self._session.tell(f"{self._case.title}: {contender}", new)
        return self._session.clock()

    def _end(self, contender: str, seconds: Sequence[float]) -> None:
        if contender not in self._ran:
            self._ran.append(contender)
        self._session.record(self._case, contender, seconds)
        self._session.count(self._case, contender)
