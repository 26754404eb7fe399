"""Signals that ask a command to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from groundray import interrupts

COMMAND = """
import os, signal, sys, time
from groundray.cli.command import run_command

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

def work(errors):
    try:
        if "destructor" in sys.argv:
            Destroyed()  # Python drops what this raises
        else:
            print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(float(sys.argv[1]))
        print("clean", flush=True)
    return 0

sys.exit(run_command(work, interrupted="nothing was written"))
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_lets_the_first_clean_up(number: int) -> None:
    process = start("1")
    wait_for(process, "ready")
    process.send_signal(number)
    wait_for(process, "cleaning")
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=30)
    assert (process.returncode, shown) == (128 + number, "clean\n")
    assert len(errors.splitlines()) == 2
    assert errors.endswith("nothing was written\n")


def test_a_third_signal_ends_at_once() -> None:
    process = start("60")
    wait_for(process, "ready")
    process.send_signal(signal.SIGINT)
    wait_for(process, "cleaning")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_signal_in_a_destructor_is_not_lost() -> None:
    process = start("0", "destructor")
    shown, errors = process.communicate(timeout=30)
    assert (process.returncode, shown, errors) == (143, "cleaning\nclean\n", "nothing was written\n")


def test_a_terminal_that_hangs_up_is_ignored_under_nohup() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.routed(heard.append):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGTERM]
