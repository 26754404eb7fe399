"""How Ray Data (2.60) executes the datasets of a run. Its tasks import this file: it needs neither torch nor
transformers."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from ray.data import DataContext

from groundray.runtime import compat

PAUSE_SECONDS = 0.05


class Scheduling(compat.ExecutionCallback):
    """Gives a dataset the CPUs of its rank, and keeps iterations of Ray Data's scheduling loop `PAUSE_SECONDS` apart.

    With Ray Data's own share of the cluster, no decoding task fits beside a reading task on few CPUs, so the first step
    would wait until all windows of the segment are read: 30 s for 256 windows on two CPUs, instead of 5.

    The loop runs in a thread of the training worker. When no task is running it spins without waiting (Ray 2.60):
    measured, it held the interpreter 80% of the time and halved a worker's samples a second.
    """

    cpus: ClassVar[float]

    @staticmethod
    def with_cpus(cpus: float) -> type[Scheduling]:
        """Return the class of callbacks for datasets with so many CPUs: Ray Data takes classes, not objects."""
        return type("Scheduling", (Scheduling,), {"cpus": cpus})

    def __init__(self) -> None:
        self._last = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        compat.use_cpu_limit(executor, self.cpus)

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(max(0.0, self._last + PAUSE_SECONDS - time.monotonic()))
        self._last = time.monotonic()


def quiet_context() -> DataContext:
    """Return Ray Data's settings without progress bars and log lines."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # without it the original error is not in the message
    return context
