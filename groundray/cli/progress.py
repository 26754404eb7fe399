"""Progress of a run for a person: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from groundray.storage.folder import format_bytes
from groundray.training.events import (
    Attempted,
    EpochDone,
    Event,
    FeaturesDone,
    FeaturesStarted,
    Notice,
    Recovered,
    StageDone,
    StageStarted,
    StepDone,
)

LINE_SECONDS = 10.0
FILE_WIDTH = 160  # columns of a table that goes to a file, where nobody's window is the measure


def table_console(soft_wrap: bool = False) -> Console:
    """Where results and their tables are shown."""
    console = Console(highlight=False, markup=False, soft_wrap=soft_wrap)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


class Reporter:
    """Prints the events of a run: stage, epoch, step, loss, samples a second, share of waiting, time left."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, markup=False)
        self._clock = clock
        self._epochs = 0
        self._started = self._printed = clock()
        self._first_step: int | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def observe(self, event: Event) -> None:
        match event:
            case FeaturesStarted():
                self.console.print(
                    f"{event.what}  trunk features of {event.missing:,} of {event.images:,} images, "
                    f"{format_bytes(event.bytes)} all together, to {event.folder}"
                )
            case FeaturesDone():
                self.console.print(f"{event.what}  trunk features are there after {event.seconds:.0f} s")
            case Attempted():
                if event.number > 1 and event.stage:
                    self.console.print(
                        f"attempt {event.number}  the one before was {event.ended}; {event.repeated_steps} steps "
                        f"({event.repeated_seconds:.0f} s) are done again"
                    )
            case Recovered():
                self.console.print(
                    f"attempt {event.number}  first step {event.start_seconds:.1f} s after it began, "
                    f"{event.down_seconds:.1f} s after the last sign of the one before"
                )
            case Notice():
                self.console.print(f"note  {event.text}")
            case StageStarted():
                self._stage(event)
            case StepDone():
                self._step(event)
            case EpochDone():
                mark = "  best so far" if event.best else ""
                self._metrics(f"{event.stage}  epoch {event.epoch + 1}/{event.epochs}  validation", event.metrics, mark)
            case StageDone():
                self.close()
                self._metrics(f"{event.stage}  done, best epoch", event.metrics)

    def close(self) -> None:
        """Take the live bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _metrics(self, title: str, metrics: Mapping[str, float], mark: str = "") -> None:
        """A line of plain metrics, and below it one for each group of them, such as `text_to_image/...`."""
        groups: dict[str, list[str]] = {"": []}
        for name, value in metrics.items():
            group, _, short = name.rpartition("/")
            groups.setdefault(group, []).append(f"{short} {value:.4g}")
        self.console.print("  ".join([title, *groups.pop("")]) + mark)
        for group, shown in groups.items():
            self.console.print(f"  {group}  {'  '.join(shown)}")

    def _stage(self, event: StageStarted) -> None:
        where = "starts" if event.step == 0 else f"goes on after step {event.step}"
        self.console.print(f"{event.stage}  {where}: {event.epochs} epochs, {event.steps} steps")
        self._epochs, self._first_step = event.epochs, None
        if self.console.is_terminal:
            self.close()
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self._task = self._bar.add_task(event.stage, total=event.steps, completed=event.step, detail="")
            self._bar.start()

    def _step(self, event: StepDone) -> None:
        now = self._clock()
        if self._first_step is None:  # which took as long as everything does to begin
            self._first_step, self._started = event.step, now
        detail = (
            f"loss {event.metrics['loss']:.4f}  {event.metrics['samples_per_second']:.0f} samples/s  "
            f"data wait {event.metrics['time/data_wait']:.0%}"
        )
        if self._bar is not None and self._task is not None:
            title = f"{event.stage}  epoch {event.epoch + 1}/{self._epochs}"
            self._bar.update(self._task, description=title, completed=event.step, detail=detail)
        elif now - self._printed >= LINE_SECONDS:
            done = event.step - self._first_step
            left = f"  {_minutes((now - self._started) / done * (event.steps - event.step))} left" if done else ""
            place = f"{event.stage}  epoch {event.epoch + 1}/{self._epochs}  step {event.step}/{event.steps}"
            self.console.print(f"{place}  {detail}{left}")
            self._printed = now


class Meter:
    """Shows how far several things are, by name: bars on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._printed = clock()
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Meter:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def show(self, what: str, done: int, total: int) -> None:
        """So much of something is done."""
        if self._console.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total, visible=done < total)
        elif done < total and self._clock() - self._printed >= LINE_SECONDS:
            self._printed = self._clock()
            self._console.print(f"{what}  {done:,}/{total:,}")


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
