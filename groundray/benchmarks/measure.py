"""Figures of the benchmarks and their tables, medians, and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import psutil
import torch
from rich.table import Table

from groundray.resident_memory import peak_resident

PROC = Path("/proc")


@dataclass(frozen=True)
class Missing:
    """A figure that was not measured, and the reason."""

    reason: str

    def __str__(self) -> str:
        return f"not measured ({self.reason})"


Figure = float | Missing
NO_GPU = Missing("no GPU")


@dataclass(frozen=True)
class Row:
    """The figures of one contender in one case.

    Attributes:
        case: the sizes of the case, the same for all contenders.
        figures: by name, in seconds, bytes, samples per second or ratios.
        runs: the measured values of each median, in the order of the rounds.
    """

    case: Mapping[str, int | str]
    contender: str
    figures: Mapping[str, Figure]
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, the format of a figure, and the names of the figures in a cell."""

    title: str
    format: Callable[[float], str]
    names: tuple[str, ...]

    def cell(self, figures: Mapping[str, Figure]) -> str | Missing:
        shown = [figures[name] for name in self.names if name in figures]
        missing = [figure for figure in shown if isinstance(figure, Missing)]
        return missing[0] if missing else " / ".join(self.format(figure) for figure in shown)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Report:
    """All figures of a benchmark."""

    bench: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    machine: Mapping[str, Any]
    sizes: tuple[str, ...] = ()  # columns even if no row differs in them, as others may be left out

    def table(self) -> Table:
        """Return the table: one row for each contender, one section for each case.

        Sizes that differ between cases are columns. Rows that need a GPU are replaced by a line below the table.
        """
        rows = [row for row in self.rows if not all(figure == NO_GPU for figure in row.figures.values())]
        caption = self.caption if len(rows) == len(self.rows) else f"{self.caption} On a GPU: {NO_GPU}."
        varying = [
            name for name in self.rows[0].case if name in self.sizes or len({row.case[name] for row in rows}) > 1
        ]
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
        """Return the report with the values of every run. A missing figure is null, with its reason in `reasons`."""
        return {
            "bench": self.bench,
            "about": self.caption,
            "machine": dict(self.machine),
            "rows": [
                {
                    "case": dict(row.case),
                    "contender": row.contender,
                    **{name: None if isinstance(figure, Missing) else figure for name, figure in row.figures.items()},
                    "reasons": {
                        name: value.reason for name, value in row.figures.items() if isinstance(value, Missing)
                    },
                    "runs": {name: list(values) for name, values in row.runs.items()},
                }
                for row in self.rows
            ],
        }


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: statistics.median(values) for name, values in runs.items()}


def ratios(values: Sequence[float], of: Sequence[float]) -> list[float]:
    """Return the values of each round as multiples of another contender's in the same round."""
    return [value / other for value, other in zip(values, of, strict=True)]


def spread(runs: Mapping[str, Sequence[float]], name: str) -> dict[str, float]:
    """Return the least, the median and the greatest value of a figure as `NAME_least`, `NAME` and `NAME_most`."""
    values = runs[name]
    return {f"{name}_least": min(values), name: statistics.median(values), f"{name}_most": max(values)}


def compared(
    figures: dict[str, list[float]], baseline: Mapping[str, Sequence[float]] | None, of: str, ratio: str
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the medians of a contender's figures and the figures, with ratios to a baseline's if that was measured.

    Args:
        of: the figure to compare, in the same round.
        ratio: name of the ratios.
    """
    if baseline is None:
        return medians(figures), figures
    runs = {**figures, ratio: ratios(figures[of], baseline[of])}
    return {**medians(runs), **spread(runs, ratio)}, runs


def cpu_seconds() -> dict[int, float]:
    """Return the CPU time of this process and of all running ones that it has started, directly or not, by number.

    Unlike time that passes, it hardly depends on what else the machine does.
    """
    own, found = psutil.Process(), {}
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


def cpu_between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the CPU time between two results of `cpu_seconds`, of the processes that run at the second one."""
    return sum(max(0.0, seconds - before.get(process, 0.0)) for process, seconds in after.items())


def peak_memory(call: Callable[[], object], device: str) -> Figure:
    """Return the bytes that a call holds at its peak, beyond those held before it; its result counts.

    On a CPU this is resident memory of the process. Linux can reset its peak; psutil does not offer that.
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
        ctypes.CDLL(None).malloc_trim(0)  # glibc returns freed memory that it keeps for later
        (PROC / "self" / "clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, the peak
    except (OSError, AttributeError):
        return Missing("the peak of resident memory can be reset on Linux with glibc only")
    before = psutil.Process().memory_info().rss
    call()
    return float(max(0, peak_resident() - before))


def free_memory(device: str) -> int:
    """Return the bytes that a process can still allocate on a device."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for later is free
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def too_large(needs: int, device: str) -> Missing | None:
    """Return the reason to skip a contender that needs more bytes than are free, or None if it fits."""
    free = free_memory(device)
    if needs <= free:
        return None
    return Missing(f"needs {needs / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def chosen_device(device: str | None) -> str:
    """Return the device to measure on: the given one, or else `cuda` if there is one.

    Raises:
        ValueError: `cuda` is given, and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected a CUDA device, found none: use --device cpu")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """Describe the machine of the measurements."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cpus": joblib.cpu_count(),
        "load": list(psutil.getloadavg()),
        "memory": free_memory("cpu"),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    try:
        lines = (PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def seconds(value: float) -> str:
    """Format seconds: 12.3 s, 0.123 s or 1.23 ms."""
    if value < 0.1:
        return f"{value * 1000:.2f} ms"
    return f"{value:.3f} s" if value < 10 else f"{value:.1f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f} MB" if value < 1e7 else f"{value / 1e6:,.0f} MB"


def times(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
