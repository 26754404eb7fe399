"""Progress of a command: live bars on a terminal, a line every 10 seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from groundray.cli.command import plain_console
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
BAR_WIDTH = 24  # columns, where the terminal has room
Item = TypeVar("Item")


@dataclass
class _Task:
    first: int  # how much was done at the first update, which takes as long as everything does to start
    started: float
    bar: TaskID | None = None


class _TimeLeft(TimeRemainingColumn):
    """The time that is left: of the update, or else from the time that what is done has taken."""

    def render(self, task: Task) -> Text:
        if (left := task.fields.get("left")) is None:
            return super().render(task)
        return Text(f"{int(left) // 60:02d}:{int(left) % 60:02d}", style="progress.remaining")


class Progress:
    """Progress of named tasks: a live bar for each on a terminal, elsewhere a line every 10 seconds.

    Args:
        clock: returns seconds; for tests.
        live: draw bars ten times a second, in a thread; otherwise at each update, on the thread that calls.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic, *, live: bool = True) -> None:
        self._console, self._clock, self._live = console, clock, live
        self._printed = clock()
        self._tasks: dict[str, _Task] = {}
        self._bars: Bars | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(
        self,
        task: str,
        done: int,
        total: int | None,
        *,
        title: str = "",
        unit: str = "",
        detail: str = "",
        left: float | None = None,
        due: bool = False,
    ) -> None:
        """Show how much of a task is done.

        Args:
            total: None if it is not known.
            title: the text to show; the task's name by default.
            unit: goes before the numbers of a line, such as `step`.
            detail: goes after them.
            left: seconds that are left, about; by default from the time that what is done has taken.
            due: print a line even if the last one is not 10 seconds old.
        """
        now = self._clock()
        state = self._tasks.setdefault(task, _Task(done, now))
        if self._console.is_terminal:
            self._draw(state, title or task, done, total, detail, left)
        elif due or now - self._printed >= LINE_SECONDS:
            self._printed = now
            count = f"{unit} {done}/{total}".strip() if unit else f"{done:,}" + (f"/{total:,}" if total else "")
            if not done and not total:
                count = ""
            if left is None and total and done > state.first:
                left = (now - state.started) / (done - state.first) * (total - done)
            until = "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d} left"
            self._console.print("  ".join(part for part in (title or task, count, detail, until) if part))

    def track(self, items: Iterable[Item], task: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items, and show how many have been used.

        Args:
            total: the number of items; by default their length, if they have one.
        """
        total = len(items) if total is None and isinstance(items, Sized) else total
        for done, item in enumerate(items, start=1):
            yield item
            self.update(task, done, total)

    def close(self) -> None:
        """Take the bars off the terminal."""
        self._tasks.clear()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _draw(self, state: _Task, title: str, done: int, total: int | None, detail: str, left: float | None) -> None:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"),
                # the bar gives way where a line would be wider than the terminal
                BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=BAR_WIDTH)),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                _TimeLeft(compact=True),
                console=self._console,
                transient=True,
                auto_refresh=self._live,
            )
            self._bars.start()
        if state.bar is None:
            state.bar = self._bars.add_task(title, total=total, completed=done, detail=detail, left=left)
        visible = total is None or done < total
        self._bars.update(
            state.bar, description=title, completed=done, total=total, detail=detail, left=left, visible=visible
        )
        if not self._live:
            self._bars.refresh()


class Reporter:
    """Prints the events of a training run, with the progress of each stage.

    Args:
        console: stdout by default.
        clock: returns seconds; for tests.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or plain_console(optional=True)
        self._progress = Progress(self.console, clock)
        self._epochs = 0

    def observe(self, event: Event) -> None:
        match event:
            case FeaturesStarted():
                from groundray.storage.folder import format_bytes  # imports pyarrow, which `bench loss` does without

                self.console.print(
                    f"{event.what}  {event.title} of {event.missing:,} of {event.images:,} images, "
                    f"{format_bytes(event.bytes)} in total, to {event.folder}"
                )
            case FeaturesDone():
                self.console.print(f"{event.what}  {event.title} done in {event.seconds:.0f} s")
            case Attempted():
                if event.number > 1 and event.stage:
                    self.console.print(
                        f"attempt {event.number}  previous attempt {event.ended}; repeating {event.repeated_steps} "
                        f"steps ({event.repeated_seconds:.0f} s)"
                    )
            case Recovered():
                self.console.print(
                    f"attempt {event.number}  first step {event.start_seconds:.1f} s after its start, "
                    f"{event.down_seconds:.1f} s after the previous attempt's last heartbeat"
                )
            case Notice():
                self.console.print(f"note  {event.text}")
            case StageStarted():
                self._start_stage(event)
            case StepDone():
                self._show_step(event)
            case EpochDone():
                suffix = "  best so far" if event.best else ""
                at = "" if event.ends_epoch else f" at step {event.step}"
                self._print_metrics(
                    f"{event.stage}  epoch {event.epoch + 1}/{event.epochs}  validation{at}", event.metrics, suffix
                )
            case StageDone():
                self.close()
                best = "" if event.best_epoch is None else f" {event.best_epoch + 1}, step {event.best_step}"
                self._print_metrics(f"{event.stage}  done, best epoch{best}", event.metrics)
                if event.ended.startswith("stopped early"):
                    self.console.print(f"{event.stage}  {event.ended}")

    def close(self) -> None:
        """Take the live bar off the terminal."""
        self._progress.close()

    def _print_metrics(self, title: str, metrics: Mapping[str, float], suffix: str = "") -> None:
        """Print a line of the metrics without a group, then a line for each group, such as `text_to_image/...`."""
        groups: dict[str, list[str]] = {"": []}
        for name, value in metrics.items():
            group, _, short = name.rpartition("/")
            groups.setdefault(group, []).append(f"{short} {value:.4g}")
        self.console.print("  ".join([title, *groups.pop("")]) + suffix)
        for group, shown in groups.items():
            self.console.print(f"  {group}  {'  '.join(shown)}")

    def _start_stage(self, event: StageStarted) -> None:
        self.close()
        self._epochs = event.epochs
        action = "starts" if event.step == 0 else f"resumes after step {event.step}"
        self.console.print(f"{event.stage}  {action}: {event.epochs} epochs, {event.steps} steps")

    def _show_step(self, event: StepDone) -> None:
        metrics = event.metrics
        self._progress.update(
            event.stage,
            event.step,
            event.steps,
            title=f"{event.stage}  epoch {event.epoch + 1}/{self._epochs}",
            unit="step",
            # samples a second, and the fraction of time spent waiting for data: short, so that a line has 80 columns
            detail=f"loss {metrics['loss']:.4f}  {metrics['samples_per_second']:.0f}/s  "
            f"wait {metrics['time/data_wait']:.0%}",
        )
