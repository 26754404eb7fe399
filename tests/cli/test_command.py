"""Exit statuses and error lines that all commands share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def started(work: str, redirect: str) -> subprocess.Popen[str]:
    """Start a command whose work waits for the end of its stdin, with a redirection of the shell."""
    code = f"""
import sys
from groundray.cli.command import *
def work(errors):
    sys.stdin.read()
    {work}
    return 7
sys.exit(run_command(work))
"""
    return subprocess.Popen(
        ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Close a command's stdout if it is a pipe, let it work, and return its status and the lines of its stderr."""
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, shown = process.communicate("")
    return process.returncode, shown.splitlines()


REDIRECTIONS = [pytest.param("", id="closed pipe"), ">&-", pytest.param(">/dev/full", id="full disk")]


@pytest.mark.parametrize("redirect", REDIRECTIONS)
@pytest.mark.parametrize(
    "work",
    [
        "[plain_console().print('line') for _ in range(100_000)]",
        "write_output('line')",
        "table_console().print('line')",
    ],
)
def test_a_result_that_cannot_be_written_gives_status_1_and_one_line(work: str, redirect: str) -> None:
    status, shown = ended(started(work, redirect))
    assert (status, len(shown)) == (EXIT_FAILED, 1)
    assert shown[0].startswith("error: stdout ")


@pytest.mark.parametrize("work", ["print('line')", "print('line' * 100_000)"])
def test_a_closed_pipe_gives_status_1_and_one_line_whatever_prints(work: str) -> None:
    status, shown = ended(started(work, ""))
    assert (status, len(shown)) == (EXIT_FAILED, 1)


@pytest.mark.parametrize("redirect", REDIRECTIONS)
def test_progress_that_cannot_be_written_ends_nothing(redirect: str) -> None:
    work = "[console.print('line') for console in (plain_console(optional=True),) for _ in range(1000)]"
    status, shown = ended(started(work, redirect))
    assert (status, len(shown)) == (7, 1)
    assert shown[0].startswith("note  stdout ")


@pytest.mark.parametrize("redirect", ["2>&-", "2>&1", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_lost_stderr_ends_nothing(redirect: str) -> None:
    work = "errors.print('line'); plain_console(optional=True).print('line')"
    assert ended(started(work, redirect)) == (7, [])


def test_files_do_not_take_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    work = f"import os; f = open({str(tmp_path / 'f')!r}, 'w'); os.write(2, b'noise'); os._exit(f.fileno())"
    assert ended(started(work, ">&- 2>&-"))[0] > 2
    assert (tmp_path / "f").read_text() == ""


def test_characters_that_stdout_cannot_encode_are_escaped() -> None:
    code = """
from groundray.cli.command import plain_console
plain_console().print('4 \u00b7 5')
"""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == "4 \\xb7 5\n"


def test_a_console_prints_a_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]" + "word " * 100
    plain_console().print(line)
    assert capsys.readouterr().out == f"{line}\n"
