"""A training run for a person at a command line: its claim, progress, tracking, signals and exit status."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from groundray.cli import reports
from groundray.cli.progress import Reporter
from groundray.config import Settings, SettingsError
from groundray.runtime.train import launch
from groundray.tracking import Tracker
from groundray.training import progression
from groundray.training.events import Attempted, Event
from groundray.training.worker import Stopped

EXIT_FAILED, EXIT_USAGE = 1, 2
EXIT_SIGNAL = 128  # and its number


@dataclass
class Signals:
    """Ctrl-C and SIGTERM: the first lets a run that trains write a checkpoint and end, any other ends it as it is."""

    training: bool = False
    received: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Meanwhile, signals come here."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def notice(self) -> str:
        return "stopped" if self.received else ""

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if not self.training or len(self.received) > 1:
            raise KeyboardInterrupt


def carry_out(
    settings: Settings,
    reporter: Reporter,
    complain: Callable[[str], None],
    verify: bool = False,
    verbose: bool = False,
    parent: str | None = None,
    signals: Signals | None = None,
) -> int:
    """The exit status of a run: 0 trained, 1 a failure while training, 2 data that cannot be used, 130 or 143 ended by
    Ctrl-C or SIGTERM.

    Args:
        complain: takes what went wrong, in lines for a person.
        verify: read every byte of the shards first.
        verbose: with Ray's own logs.
        parent: the MLflow run of a sweep that this run is part of.
        signals: where those go that come meanwhile, for who wants to know even where the run came to its end.
    """
    try:
        progression.reach(settings)
        stages = progression.check(settings)
        if unusable := reports.problem(settings):
            raise SettingsError(unusable)
        if verify:
            progression.verify(stages, reporter.console.print)
        folder = progression.claim(settings, stages)
    except (SettingsError, OSError, ValueError) as error:
        complain(f"error: {error}")
        return EXIT_USAGE

    tracker = Tracker.of(settings, stages, complain, parent) if settings.tracking.enabled else None
    signals = signals or Signals()

    def observe(event: Event) -> None:
        signals.training |= isinstance(event, Attempted)
        reporter.observe(event)
        if tracker:
            tracker.observe(event)

    workers = " to ".join(map(str, dict.fromkeys((settings.scaling.min_workers, settings.scaling.max_workers))))
    where = f"starting {workers} workers on Ray" if settings.scaling.max_workers else "in this process"
    reporter.console.print(f"run  {folder}, {where}")
    result: dict[str, Any] | None = None
    ended: Exception | None = None
    with signals.heard():
        try:
            result = launch.fit(settings, observe, verbose, signals.notice)
        except (launch.RunFailed, Stopped, ValueError, ArithmeticError, OSError, RuntimeError) as error:
            ended = error
        except KeyboardInterrupt:
            pass
        finally:
            reporter.close()
            if tracker:
                tracker.close(result, "FINISHED" if result else "KILLED" if signals.received else "FAILED")
    if result:
        reporter.console.print(f"result  {folder}/{progression.RESULT}\nmodel   {folder}/{progression.MODEL}")
        return _analysed(settings, reporter, complain, signals)
    if signals.received:
        kept = "a checkpoint is written" if isinstance(ended, Stopped) else "what was trained is kept"
        complain(f"stopped: {kept} in {folder}; the same command goes on from there")
        return EXIT_SIGNAL + signals.received[0]
    complain(f"error: {ended}")
    complain(f"what was trained is kept in {folder}; the same command goes on from there")
    return EXIT_FAILED


def _analysed(settings: Settings, reporter: Reporter, complain: Callable[[str], None], signals: Signals) -> int:
    """The exit status of a run that is complete, after its language streams have been analysed."""
    signals.training = False  # there is no checkpoint to write: a signal ends it as it is
    already = len(signals.received)
    with signals.heard():
        try:
            reports.finish(settings, reporter.console, complain)
        except KeyboardInterrupt:
            complain("stopped: the run is complete, its analysis is not; the same command makes it")
            return EXIT_SIGNAL + signals.received[already]
    return 0
