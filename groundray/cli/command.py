"""Shared parts of all commands: exit statuses, error lines, and a clean end by Ctrl-C, SIGTERM or a closed stdout."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import IO, NoReturn

from rich.console import Console

EXIT_FAILED, EXIT_USAGE = 1, 2
EXIT_SIGNAL = 128  # plus the signal's number, as a shell reports it
FILE_WIDTH = 160  # columns of a table that is written to a file or pipe


class CommandFailed(Exception):
    """The options and data can be used, but the work failed: exit status 1."""


def run_command(
    work: Callable[[Console], int],
    *,
    interrupted: str = "interrupted",
    unusable: tuple[type[Exception], ...] = (OSError, ValueError),
    failed: tuple[type[Exception], ...] = (CommandFailed,),
) -> int:
    """Run a command and return its exit status: the one that `work` returns, 1 if it failed, 2 if its options or data
    cannot be used, 130 after Ctrl-C, 143 after SIGTERM.

    An exception that is in neither tuple is a defect and keeps its traceback.

    Args:
        work: the command; takes the console for stderr.
        interrupted: the line to print after Ctrl-C or SIGTERM.
        unusable: exceptions for exit status 2.
        failed: exceptions for exit status 1, checked before `unusable`.
    """
    errors = plain_console(stderr=True)
    with _sigterm_interrupts() as terminated:
        try:
            try:
                return work(errors)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            errors.print(interrupted)
            return EXIT_SIGNAL + (signal.SIGTERM if terminated else signal.SIGINT)
        except (BrokenPipeError, *failed) as error:
            _discard_closed_stdout()
            errors.print(f"error: {error}")
            return EXIT_FAILED
        except unusable as error:
            errors.print(f"error: {error}")
            return EXIT_USAGE


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints lines as they are, without markup, highlighting or wrapping."""
    return _PlainConsole(highlight=False, soft_wrap=True, markup=False, stderr=stderr)


def table_console(soft_wrap: bool = False) -> Console:
    """Return a console for result tables: as wide as the terminal or COLUMNS, else 160 columns for a file or pipe."""
    console = _PlainConsole(highlight=False, soft_wrap=soft_wrap, markup=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = FILE_WIDTH
    return console


class _PlainConsole(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Raise BrokenPipeError, where rich would end the process without a message."""
        _discard(self.file)
        raise BrokenPipeError(errno.EPIPE, "the output was closed before everything was written")


def _discard_closed_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)


def _discard(stream: IO[str]) -> None:
    """Send a closed stream to /dev/null, so that Python does not fail once more when it flushes the stream at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[list[int]]:
    """Let SIGTERM raise KeyboardInterrupt inside the context, so that files are cleaned up; yield the signals received.

    Does nothing outside the main thread, where Python sets no signal handlers.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
