"""Shared parts of all commands: exit statuses, error lines, a clean end by a signal, and output that is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any, Literal, cast

from rich.console import Console

from groundray import interrupts
from groundray.credentials import redacted

EXIT_FAILED, EXIT_USAGE = 1, 2
EXIT_SIGNAL = 128  # plus the signal's number, as a shell reports it
CHECKPOINT = "a run's model/ folder, as a path, URL or model in MLflow (models:/NAME@ALIAS, runs:/RUN_ID/model)"
FILE_WIDTH = 160  # columns of a table that is written to a file or pipe


class CommandFailed(Exception):
    """The options and data can be used, but the work failed: exit status 1."""


class OutputLost(Exception):
    """A result could not be written to stdout: exit status 1."""


def run_command(
    work: Callable[[Console], int],
    *,
    interrupted: str = "interrupted",
    unusable: tuple[type[Exception], ...] = (OSError, ValueError),
    failed: tuple[type[Exception], ...] = (CommandFailed,),
) -> int:
    """Run a command and return its exit status: the one that `work` returns, 1 if it failed or its output was lost, 2
    if its options or data cannot be used, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    An exception that is in neither tuple is a defect and keeps its traceback.

    Args:
        work: the command; takes the console for stderr.
        interrupted: the line to print after a signal, unless the KeyboardInterrupt has a message.
        unusable: exceptions for exit status 2.
        failed: exceptions for exit status 1, checked before `unusable`.
    """
    _open_missing_streams()
    errors = plain_console(stderr=True)
    with interrupts.interrupting() as received:
        try:
            try:
                return work(errors)
            finally:
                _Output("stdout", optional=False).flush()
        except KeyboardInterrupt as stopped:
            errors.print(str(stopped) or interrupted)
            return EXIT_SIGNAL + (received[0] if received else signal.SIGINT)
        except BrokenPipeError:  # of `print` or argparse
            _discard(sys.stdout)
            errors.print("error: stdout was closed before everything was written")
            return EXIT_FAILED
        except (OutputLost, *failed) as error:
            errors.print(f"error: {error}")
            return EXIT_FAILED
        except unusable as error:
            errors.print(f"error: {error}")
            return EXIT_USAGE


def plain_console(stderr: bool = False, optional: bool = False) -> Console:
    """Return a console that prints lines as they are, without markup, highlighting or wrapping.

    Args:
        optional: what is printed only shows progress: work continues if stdout is closed, as by `| head`, or cannot be
            written. Otherwise this raises OutputLost. What is lost of stderr is never an error.
    """
    return _console(_Output("stderr" if stderr else "stdout", optional), soft_wrap=True)


def table_console(soft_wrap: bool = False, optional: bool = False) -> Console:
    """Return a console for result tables: as wide as the terminal or COLUMNS, else 160 columns for a file or pipe.

    Args:
        optional: as in `plain_console`.
    """
    console = _console(_Output("stdout", optional), soft_wrap)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = FILE_WIDTH
    return console


def write_output(text: str) -> None:
    """Write a result to stdout.

    Raises:
        OutputLost: stdout is closed, or cannot be written.
    """
    output = _Output("stdout", optional=False)
    output.write(text)
    output.flush()


def _console(output: _Output, soft_wrap: bool) -> Console:
    return Console(file=cast(IO[str], output), highlight=False, soft_wrap=soft_wrap, markup=False)


class _Output:
    """Stdout or stderr, whichever stream that is at the time, for a console to write to. Secrets are written as `***`:
    errors of libraries may show them."""

    def __init__(self, name: Literal["stdout", "stderr"], optional: bool):
        self._name, self._optional = name, optional

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # which rich puts in its place while it draws a bar

    def write(self, text: str) -> int:
        stream, text = self._stream(), redacted(text)
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Discard all further output, and either continue or raise OutputLost."""
        _discard(self._stream())
        if self._name == "stderr":
            return
        closed = error.errno in (errno.EPIPE, errno.EBADF)
        why = "was closed" if closed else f"cannot be written ({error.strerror or error})"
        if not self._optional:
            raise OutputLost(f"stdout {why} before everything was written") from None
        plain_console(stderr=True).print(f"note  stdout {why}: the work continues without it")


def _discard(stream: IO[str]) -> None:
    """Send a stream to /dev/null, so that Python does not fail once more when it flushes the stream at exit."""
    with contextlib.suppress(OSError, ValueError):  # of a stream without a file descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _open_missing_streams() -> None:
    """Open stdin, stdout and stderr if they are closed (`>&-`), before another file gets their numbers.

    What is written to stdout then fails, and does not count as written.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
