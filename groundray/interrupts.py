"""The signals that ask a command to end: Ctrl-C (SIGINT), SIGTERM, and SIGHUP, which a closed terminal sends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
RETRY_SECONDS = 0.05


@contextlib.contextmanager
def routed(receive: Callable[[int], None]) -> Iterator[None]:
    """Call `receive` in the main thread for each signal that asks to end, inside the context.

    SIGHUP stays ignored where it is, as under `nohup`. Does nothing outside the main thread, where Python sets no
    signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        receive(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANG_UP and signal.getsignal(HANG_UP) is not signal.SIG_IGN:
        numbers.append(HANG_UP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None stands for one that C code has set


@contextlib.contextmanager
def interrupting() -> Iterator[list[int]]:
    """Let the first signal that asks to end raise KeyboardInterrupt inside the context; yields the signals received.

    What is cleaned up then is not interrupted: a second signal prints a line, and a third one ends the process at once.
    """
    received: list[int] = []
    lost = False

    def receive(number: int) -> None:
        nonlocal lost
        if lost:
            lost = False
            raise KeyboardInterrupt
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt
        if len(received) > 2:
            os._exit(128 + number)
        with contextlib.suppress(OSError):  # not through sys.stderr, which this thread may be writing to
            os.write(2, b"ending, and cleaning up; once more to end at once, which may leave temporary files\n")

    def repeat() -> None:
        if lost:  # a signal, which also wakes the main thread if it sleeps
            signal.pthread_kill(main_thread, received[0])

    def raise_again(unraisable: Any) -> None:
        """Repeat a KeyboardInterrupt that Python dropped, as it was raised in a destructor or a callback."""
        nonlocal lost
        if isinstance(unraisable.exc_value, KeyboardInterrupt) and received:
            lost = True
            again = threading.Timer(RETRY_SECONDS, repeat)
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    main_thread, hook = threading.main_thread().ident or 0, sys.unraisablehook
    sys.unraisablehook = raise_again
    try:
        with routed(receive):
            yield received
    finally:
        lost = False
        sys.unraisablehook = hook
