"""How the benchmarks measure: in turns, in medians, each on the clock of its device, memory in runs of its own."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import torch
from rich.table import Table

PROCESS, MACHINE = Path("/proc/self"), Path("/proc")


@dataclass(frozen=True)
class Missing:
    """A figure that was not measured, and why."""

    reason: str

    def __str__(self) -> str:
        return f"not measured ({self.reason})"


Figure = float | Missing
NO_GPU = Missing("no GPU")


@dataclass(frozen=True)
class Row:
    """What was found of a contender in a case.

    Attributes:
        case: the sizes that all contenders have in common.
        figures: by name, in seconds, bytes, samples a second or plain ratios.
        runs: what the medians among the figures are of, in the order of the rounds.
    """

    case: Mapping[str, int | str]
    contender: str
    figures: Mapping[str, Figure]
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, how its figures are written, and their names; several stand side by side."""

    title: str
    written: Callable[[float], str]
    names: tuple[str, ...]

    def cell(self, figures: Mapping[str, Figure]) -> str | Missing:
        found = [figures[name] for name in self.names if name in figures]
        missing = [figure for figure in found if isinstance(figure, Missing)]
        return missing[0] if missing else " / ".join(self.written(figure) for figure in found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark has measured."""

    bench: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    machine: Mapping[str, Any]

    def table(self) -> Table:
        """The figures, a row a contender and a section a case; a column for each size in which cases differ.

        What a GPU was needed for is one line below it.
        """
        rows = [row for row in self.rows if not all(figure == NO_GPU for figure in row.figures.values())]
        caption = self.caption if len(rows) == len(self.rows) else f"{self.caption} On a GPU: {NO_GPU}."
        varying = [name for name in self.rows[0].case if len({row.case[name] for row in rows}) > 1]
        table = Table(title=self.bench, caption=caption, caption_justify="left", title_justify="left")
        for title in varying:
            table.add_column(title, justify="left" if title == "device" else "right", no_wrap=True)
        table.add_column("")
        for column in self.columns:
            table.add_column(column.title, justify="right", no_wrap=True)
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            ends = following is None or following.case != row.case
            sizes = [str(row.case[name]) for name in varying]
            cells = [column.cell(row.figures) for column in self.columns]
            reasons = dict.fromkeys(f"\n{cell}" for cell in cells if isinstance(cell, Missing))
            shown = ["" if isinstance(cell, Missing) else cell for cell in cells]
            table.add_row(*sizes, "".join([row.contender, *reasons]), *shown, end_section=ends)
        return table

    def as_json(self) -> dict[str, Any]:
        """The same with every single run. A figure that is missing is null, and `reasons` says why."""
        return {
            "bench": self.bench,
            "about": self.caption,
            "machine": dict(self.machine),
            "rows": [
                {
                    "case": dict(row.case),
                    "contender": row.contender,
                    **{name: None if isinstance(figure, Missing) else figure for name, figure in row.figures.items()},
                    "reasons": {name: one.reason for name, one in row.figures.items() if isinstance(one, Missing)},
                    "runs": {name: list(values) for name, values in row.runs.items()},
                }
                for row in self.rows
            ],
        }


def interleaved(
    runs: Mapping[str, Callable[[], Mapping[str, float]]],
    repeats: int,
    most_seconds: float = float("inf"),
    warm_up: bool = True,
) -> dict[str, dict[str, list[float]]]:
    """What each contender measured of itself in each round: A B C A B C ...

    So a machine that slows down meanwhile slows all of them alike.

    Args:
        repeats: rounds.
        most_seconds: no round but the first starts when the rounds have taken so long.
        warm_up: begin with a round that does not count.
    """
    if warm_up:
        for run in runs.values():
            run()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    started = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - started > most_seconds:
            break
        for name, run in runs.items():
            for what, value in run().items():
                found[name].setdefault(what, []).append(value)
    return found


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each figure."""
    return {name: statistics.median(values) for name, values in runs.items()}


class Stopwatch:
    """Seconds between marks: wall time on a CPU; on CUDA, where calls return early, the device's own time."""

    def __init__(self, device: str) -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._marks: list[Any] = []
        if self._cuda:
            torch.cuda.synchronize()  # nothing of earlier work is under way when the first mark is passed
        self.mark()

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each stretch from a mark to the next."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._cuda:
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


def peak_memory(call: Callable[[], object], device: str) -> Figure:
    """Bytes that a call holds at its peak beyond what was held before it, its result among them.

    On a CPU it is the process's resident memory, which the Linux kernel can be asked to watch anew.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc gives back what it keeps for later
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    except (OSError, AttributeError):
        return Missing("the peak of resident memory is known on Linux with glibc alone")
    before = _status("VmRSS")
    call()
    return float(max(0, _status("VmHWM") - before))


def _status(name: str) -> int:
    """A number of bytes from the kernel's account of this process."""
    return _kilobytes(PROCESS / "status", name) * 1024


def _kilobytes(file: Path, name: str) -> int:
    lines = file.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def free_memory(device: str) -> int | None:
    """Bytes that a process could still take on a device; None where nobody knows."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        return _kilobytes(MACHINE / "meminfo", "MemAvailable") * 1024
    except OSError:
        return None


def too_large(needs: int, device: str) -> Missing | None:
    """Why a contender that needs so many bytes is not tried, or None where it fits."""
    free = free_memory(device)
    if free is None or needs <= free:
        return None
    return Missing(f"needs {needs / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cpus": joblib.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "memory": free_memory("cpu"),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    try:
        lines = (MACHINE / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(value: float) -> str:
    """As a table shows it: 12.3 s, 0.123 s or 1.23 ms."""
    if value < 0.1:
        return f"{value * 1000:.2f} ms"
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB" if value < 1e7 else f"{value / 1e6:,.0f} MB"


def times(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
