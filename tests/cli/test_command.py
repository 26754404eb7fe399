"""Exit statuses and error lines that all commands share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from groundray.cli.command import EXIT_FAILED, EXIT_USAGE, CommandFailed, plain_console, run_command


def raises(error: BaseException) -> Callable[[Console], int]:
    def work(errors: Console) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no such file"), EXIT_USAGE, "error: no such file\n"),
        (FileNotFoundError("no such file"), EXIT_USAGE, "error: no such file\n"),
        (CommandFailed("out of room"), EXIT_FAILED, "error: out of room\n"),
        (KeyboardInterrupt(), 130, "nothing was written\n"),
    ],
)
def test_an_exception_becomes_a_line_and_an_exit_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raises(error), interrupted="nothing was written") == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", line)


def test_the_status_of_the_work_is_the_status_of_the_command() -> None:
    assert run_command(lambda errors: 7) == 7


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        run_command(raises(KeyError("x")))
    with pytest.raises(OSError, match="x"):
        run_command(raises(OSError("x")), unusable=(ValueError,))


def test_a_command_can_name_its_own_exceptions() -> None:
    assert run_command(raises(LookupError("x")), unusable=(LookupError,)) == EXIT_USAGE
    assert run_command(raises(RuntimeError("x")), failed=(RuntimeError,)) == EXIT_FAILED


def test_sigterm_gives_status_143_and_restores_the_handler() -> None:
    def work(errors: Console) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(work) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "work", ["print('line\\n' * 100_000)", "[plain_console().print('line') for _ in range(100_000)]", "print('line')"]
)
def test_a_closed_stdout_gives_status_1_and_one_line(work: str) -> None:
    code = f"""
import sys, time
from groundray.cli.command import plain_console, run_command
def work(errors):
    sys.stdin.read()
    {work}
    return 0
sys.exit(run_command(work))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, shown = process.communicate("")
    assert process.returncode == EXIT_FAILED
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_a_console_prints_a_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]" + "word " * 100
    plain_console().print(line)
    assert capsys.readouterr().out == f"{line}\n"
