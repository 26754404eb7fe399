"""A training run at a command line: its claim on the run's folder, progress, tracking, signals and exit status."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from groundray import interrupts
from groundray.cli import reports
from groundray.cli.command import EXIT_FAILED, EXIT_SIGNAL, EXIT_USAGE
from groundray.cli.progress import Reporter
from groundray.config import Settings, SettingsError
from groundray.runtime.train import launch
from groundray.storage.folder import Folder
from groundray.tracking.inquiry import Inquiry
from groundray.tracking.tracker import Tracker
from groundray.training import layout, preflight
from groundray.training.endings import Stopped
from groundray.training.events import Attempted, Event
from groundray.training.profiling import FIRST_FEW, TRACE

RESUME = "rerun the same command to resume"


@dataclass
class Signals:
    """Signals that ask to end. The first during training asks for a checkpoint; any other interrupts at once."""

    training: bool = False
    received: list[int] = field(default_factory=list)

    def installed(self) -> AbstractContextManager[None]:
        """Route these signals to this object inside the context."""
        return interrupts.routed(self._receive)

    def stop_reason(self) -> str:
        """Return why training should stop; empty if it should not."""
        return "stopped" if self.received else ""

    def _receive(self, number: int) -> None:
        self.received.append(number)
        if not self.training or len(self.received) > 1:
            raise KeyboardInterrupt


def run_training(
    settings: Settings,
    reporter: Reporter,
    report_error: Callable[[str], None],
    verify: bool = False,
    verbose: bool = False,
    parent: str | None = None,
    signals: Signals | None = None,
) -> int:
    """Train, analyse the model, and return the exit status: 0 trained, 1 training failed, 2 the data cannot be used,
    130, 143 or 129 stopped by SIGINT, SIGTERM or SIGHUP.

    Args:
        report_error: takes lines for stderr.
        verify: read every byte of the shards first.
        verbose: show Ray's own logs.
        parent: id of the sweep that this run is part of.
        signals: receives the signals, for a caller that needs to know of one that came after training ended.
    """
    try:
        preflight.check_storage(settings)
        inquiry = Inquiry(settings)
        run = preflight.check(settings)
        if problem := reports.norms_problem(settings) or inquiry.problem():
            raise SettingsError(problem)
        if verify:
            preflight.verify(run, reporter.console.print)
        launch.check_cluster(settings)
        _report_truncation(run, reporter, report_error)
        if warning := preflight.still_operators(settings):
            report_error(f"warning: {warning}")
        claimed = preflight.claim(run)
    except (SettingsError, OSError, ValueError) as error:
        report_error(f"error: {error}")
        return EXIT_USAGE

    tracker = Tracker(run.settings, run.folder, claimed, report_error, parent) if settings.tracking.enabled else None
    signals = signals or Signals()

    def observe(event: Event) -> None:
        signals.training |= isinstance(event, Attempted)
        reporter.observe(event)
        if tracker:
            tracker.observe(event)

    workers = " to ".join(map(str, dict.fromkeys((settings.scaling.min_workers, settings.scaling.max_workers))))
    where = f"starting {workers} workers on Ray" if settings.scaling.max_workers else "in this process"
    reporter.console.print(f"run  {run.folder}, {where}")
    result: dict[str, Any] | None = None
    failure: Exception | None = None
    with signals.installed():
        try:
            result = launch.fit(run, observe, verbose, signals.stop_reason)
        except (launch.RunFailed, Stopped, ValueError, ArithmeticError, OSError, RuntimeError) as error:
            failure = error
        except KeyboardInterrupt:
            pass
        finally:
            reporter.close()
            if tracker:
                tracker.close(result, "FINISHED" if result else "KILLED" if signals.received else "FAILED")
    if settings.run.profile:
        _report_profile(run.folder / layout.PROFILE, reporter)
    if result:
        reporter.console.print(f"result  {run.folder}/{layout.RESULT}\nmodel   {run.folder}/{layout.MODEL}")
        return _analyse(settings, reporter, report_error, signals)
    if signals.received:
        kept = "a checkpoint is written" if isinstance(failure, Stopped) else "the checkpoints so far are kept"
        report_error(f"stopped: {kept} in {run.folder}; {RESUME}")
        return EXIT_SIGNAL + signals.received[0]
    report_error(f"error: {failure}")
    report_error(f"the checkpoints so far are kept in {run.folder}; {RESUME}")
    return EXIT_FAILED


def _report_truncation(run: preflight.CheckedRun, reporter: Reporter, report_error: Callable[[str], None]) -> None:
    """Print what `max_tokens` cuts off the texts of a run; a warning where it is much."""
    for part, truncation in preflight.truncations(run).items():
        if truncation.is_loud:
            report_error(f"warning: {preflight.truncation_warning(part, truncation)}")
        elif truncation.cut:
            reporter.console.print(f"{part}  {truncation}")


def _report_profile(folder: Folder, reporter: Reporter) -> None:
    """Print where the traces of a run are."""
    try:
        names = folder.names()
    except OSError as error:
        reporter.console.print(f"profile {folder} cannot be listed: {error}")
        return
    for name in names:
        opened = " (open it at https://ui.perfetto.dev)" if name.endswith(TRACE) else ""
        reporter.console.print(f"profile {folder}/{name}{opened}")
    if not names:
        reporter.console.print(
            f"profile  none: after its first {FIRST_FEW} steps, no stage had one left; a stage that is done is not "
            "profiled, so start another run (--run.name)"
        )


def _analyse(settings: Settings, reporter: Reporter, report_error: Callable[[str], None], signals: Signals) -> int:
    """Analyse the model of a complete run, and return the exit status of the run."""
    signals.training = False  # no checkpoint to write: a signal interrupts at once
    before = len(signals.received)
    with signals.installed():
        try:
            reports.analyse_run(settings, reporter.console, report_error)
        except KeyboardInterrupt:
            report_error("stopped: the run is complete, its analysis is not; rerun the same command to make it")
            return EXIT_SIGNAL + signals.received[before]
    return 0
