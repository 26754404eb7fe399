"""Names a worker that is slower than the others of its group.

A step takes the same time on every rank, since the others wait for the slow one in collectives. The time that a rank
spends outside communication tells them apart. Each rank adds up its own, and the watchdog's thread sends the sums with
the number of its collectives (`watchdog.Peers`), so that no step waits for it. Rank 0 compares what the ranks have
spent since it last did so: a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groundray.stage.protocol import Metrics  # imports torch, which the mailbox of ranks' times does not load

SLOW_RATIO = 1.3  # from which a rank is slow: of its own time to the median of all ranks
SLOW_FRACTION = 0.1  # of the step, at least, that it takes longer than the median
SLOW_WINDOWS = 4  # in a row, before a rank is named
WINDOW_STEPS = 5  # at least
COMPUTE = (
    "look for other work on its machine, a GPU that is slowed by heat or power (nvidia-smi -q -d PERFORMANCE), or one "
    "of another type (scaling.accelerator_type)"
)
ADVICE = {
    "data_wait": "look at the CPUs, disk and network of its machine, which read and decode for it, and leave them more "
    "CPUs (scaling.cpus_per_worker)",
    "forward": COMPUTE,
    "backward": COMPUTE,
    "optimizer": COMPUTE,
    "other": "look for other work on its machine; on worker 0, at the storage that checkpoints are written to",
}


@dataclass(frozen=True)
class RankTimes:
    """What a rank has spent on the steps of a stage since its group started.

    Attributes:
        host: name and address of its machine.
        steps: number of steps.
        seconds: of all these steps, by part (`timing.StepTimes.seconds`).
    """

    host: str
    stage: str = ""
    steps: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])


class Stragglers:
    """Adds up the times of a rank's steps, and on rank 0 compares them with those of the others.

    Args:
        host: name and address of the rank's machine.
        tell: takes a message that names a slow rank.

    Attributes:
        own: the times of this rank.
        metrics: of the last window, on rank 0: `slowest_worker`, a rank, and `slowest_worker_ratio`, of its time
            outside communication to the median of all ranks. Empty before the first window of a stage.
    """

    def __init__(self, host: str, world_size: int, tell: Callable[[str], None]):
        self.own = RankTimes(host)
        self.metrics: Metrics = {}
        self._world_size, self._tell = world_size, tell
        self._starts: Mapping[int, RankTimes] = {}
        self._slow_windows, self._named = Counter[int](), set[int]()

    def add(self, stage: str, seconds: Mapping[str, float]) -> None:
        """Add the seconds of a step's parts to this rank's times."""
        own = self.own if self.own.stage == stage else RankTimes(self.own.host, stage)
        sums = {part: own.seconds.get(part, 0.0) + took for part, took in seconds.items()}
        self.own = replace(own, steps=own.steps + 1, seconds=sums)

    def compare(self, times: Mapping[int, RankTimes]) -> None:
        """Compare the ranks once each has taken WINDOW_STEPS since the last window, and tell which are slow.

        Args:
            times: those that each rank has sent last.
        """
        stages = {one.stage for one in times.values()}
        if len(times) < self._world_size or len(stages) > 1:  # some have sent nothing, or are in another stage
            return
        if {one.stage for one in self._starts.values()} != stages:
            self._starts, self.metrics = times, {}
            return
        steps = {rank: one.steps - self._starts[rank].steps for rank, one in times.items()}
        if min(steps.values()) < WINDOW_STEPS:
            return
        spent: dict[int, Metrics] = {}
        for rank, one in times.items():
            before = self._starts[rank].seconds
            spent[rank] = {part: (took - before[part]) / steps[rank] for part, took in one.seconds.items()}
        self._starts = times
        self._judge(spent)

    def _judge(self, spent: Mapping[int, Metrics]) -> None:
        """Count the windows in which each rank was slow.

        Args:
            spent: seconds a step of each rank, by part.
        """
        own = {rank: sum(parts.values()) - parts["communication"] for rank, parts in spent.items()}
        median, slowest = median_low(own.values()), max(own, key=own.__getitem__)
        self.metrics = {"slowest_worker": float(slowest), "slowest_worker_ratio": own[slowest] / median}
        slow = [
            rank
            for rank, seconds in own.items()
            if seconds > SLOW_RATIO * median and seconds - median > SLOW_FRACTION * sum(spent[rank].values())
        ]
        self._slow_windows = Counter({rank: self._slow_windows[rank] + 1 for rank in slow})
        found = [rank for rank in slow if self._slow_windows[rank] >= SLOW_WINDOWS and rank not in self._named]
        if found:
            self._named.update(found)
            self._report(sorted(found, key=own.__getitem__, reverse=True), own, median, spent)

    def _report(self, found: list[int], own: Mapping[int, float], median: float, spent: Mapping[int, Metrics]) -> None:
        rank, *others = found
        host = self._starts[rank].host
        medians = {part: median_low(parts[part] for parts in spent.values()) for part in ADVICE}
        part = max(medians, key=lambda part: spent[rank][part] - medians[part])
        also = f" (so {'are workers' if others[1:] else 'is worker'} {', '.join(map(str, others))})" if others else ""
        self._tell(
            f"worker {rank} on {host} is slow{also}: {own[rank]:.3g} s a step without communication, "
            f"the median of {len(own)} workers is {median:.3g} s, and all wait for it. Most of the difference is "
            f"{part} ({spent[rank][part]:.3g} s, median {medians[part]:.3g} s): {ADVICE[part]}"
        )
