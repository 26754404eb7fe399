"""Pools of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from groundray.data.processes import WorkerProcess, call_in_processes

PARENT = """
import contextlib, os, signal, sys, time
from groundray.data.processes import call_in_processes

def wait(number):
    time.sleep(0.5)
    return os.getpid()

if __name__ == "__main__":
    with contextlib.closing(call_in_processes(wait, [(number,) for number in range(200)], 2)) as work:
        print(*(next(work) for _ in range(8)), flush=True)
        {then}
"""


def children_of(then: str, tmp_path: object) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start a process with a pool of two; returns it and those of the pool."""
    script = f"{tmp_path}/parent.py"
    with open(script, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(PARENT.format(then=then))
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    return parent, [psutil.Process(int(pid)) for pid in set(parent.stdout.readline().split())]


@pytest.mark.thorough
def test_processes_end_when_their_parent_is_killed(tmp_path: object) -> None:
    parent, children = children_of("time.sleep(60)", tmp_path)
    parent.kill()
    parent.communicate()
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left


def test_ctrl_c_of_the_whole_group_drops_the_work_without_a_traceback_of_the_processes(tmp_path: object) -> None:
    parent, children = children_of("list(work)", tmp_path)
    began = time.monotonic()
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=30)
    assert time.monotonic() - began < 20  # the work would take 50 s
    assert errors.count("Traceback") == 1
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left


def test_results_come_in_order_and_errors_are_raised() -> None:
    assert list(call_in_processes(divmod, [(number, 7) for number in range(20)], 3)) == [
        divmod(number, 7) for number in range(20)
    ]
    with pytest.raises(ValueError, match="invalid literal"):
        list(call_in_processes(int, [("1",), ("one",)], 2))
    assert list(call_in_processes(int, [], 2)) == []


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(OSError, match="one of 1 processes was killed"):
        list(call_in_processes(os._exit, [(1,)], 1))


def test_a_process_that_is_killed_while_it_sends_its_result_is_an_error() -> None:
    worker = WorkerProcess()
    assert worker.call(sum, [1, 2]) == 3
    (child,) = (one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline()))
    worker._connection.send((bytes, (10**8,), False))  # a pipe holds less: it is cut off halfway
    assert worker._connection.poll(20)
    child.kill()
    with pytest.raises((EOFError, OSError)):
        worker._connection.recv()
    worker.close()
    assert not child.is_running()


UNGUARDED = """
import sys
from groundray.data.processes import call_in_processes

print("ran", flush=True)
print(*call_in_processes(divmod, [(7, 2)], 1), sys.modules["__main__"].__file__ == __file__)
"""


def test_a_script_is_not_run_again_in_its_processes(tmp_path: Path) -> None:
    """Also where nothing in it is below `if __name__ == "__main__"`."""
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "unguarded.py")], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, "ran\n(3, 1) True\n"), ended.stderr
