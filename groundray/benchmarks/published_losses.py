"""Compares implementations of one loss: time of forward and backward, peak memory, and equality of the values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from groundray.benchmarks.measure import (
    Column,
    Figure,
    Missing,
    Row,
    medians,
    megabytes,
    peak_memory,
    seconds,
    times,
    too_large,
)
from groundray.benchmarks.session import Turns

OURS = "groundray"
MAX_DIFFERENCE = 1e-3
PARTS = ("forward", "backward", "both")


class Disagreement(RuntimeError):
    """A contender computes another value, so its time is not comparable."""


@dataclass(frozen=True)
class Problem:
    """The arguments of a loss, and those tensors among them whose gradients are computed."""

    arguments: tuple[Any, ...]
    sources: tuple[Tensor, ...]

    @property
    def device(self) -> str:
        return self.sources[0].device.type

    @property
    def nbytes(self) -> int:
        """Bytes of the sources, which their gradients take again."""
        return sum(source.nbytes for source in self.sources)


@dataclass(frozen=True)
class Contender:
    """An implementation of the loss.

    Attributes:
        needs: peak bytes of forward and backward, beyond the sources and their gradients.
        absent: the reason why it cannot run, if it cannot.
        computes: name of the loss. Contenders of one loss have one value; times are compared between all.
    """

    loss: Callable[..., Tensor]
    needs: int = 0
    absent: Missing | None = None
    computes: str = ""


def columns(baseline: str) -> tuple[Column, ...]:
    """Return the columns of a table of comparisons."""
    return (
        *(Column(part, seconds, (part,)) for part in PARTS),
        Column(f"time of\n{baseline}", times, ("of_baseline",)),
        Column(f"ours is x times as fast\n{' / '.join(PARTS)}", times, tuple(f"ours_as_fast_{part}" for part in PARTS)),
        Column("memory", megabytes, ("scratch",)),
        Column("error", lambda error: f"{error:.0e}", ("error",)),
    )


def compare(
    turns: Turns,
    case: Mapping[str, int | str],
    contenders: Mapping[str, Contender],
    problem: Problem,
    small: Problem,
    baseline: str,
    max_difference: float = MAX_DIFFERENCE,
) -> Iterator[Row]:
    """Yield a row for each contender for which there is time, groundray's own first. One whose code fails is not
    measured.

    Args:
        turns: of a case that was planned with the contenders and a warm-up.
        small: a smaller problem of the same kind, for the warm-up.
        baseline: the contender whose time is 1.
        max_difference: of a contender's loss from groundray's, relative.

    Raises:
        Disagreement: the loss of a contender differs.
    """
    absent: dict[str, Missing] = {}
    memory: dict[str, dict[str, Figure]] = {}
    expected: dict[str, tuple[str, float]] = {}
    for name, contender in contenders.items():
        # the sources are allocated already, their gradients are not
        if reason := contender.absent or too_large(contender.needs + problem.nbytes, problem.device):
            absent[name] = reason
            turns.drop(name)
            continue
        try:
            measured = turns.first(name, partial(_warmed_loss_and_peak, contender.loss, small, problem))
        except Exception as error:
            if name == OURS:
                raise
            told = str(error).strip().partition("\n")[0]
            absent[name] = Missing(f"it fails: {type(error).__name__}: {told[:200]}")
            turns.drop(name)
            continue
        if measured is None:
            continue
        loss, peak = measured
        memory[name] = {
            "scratch": peak if isinstance(peak, Missing) else max(0.0, peak - problem.nbytes),
            "peak": peak,
            "error": _error(name, loss, *expected.setdefault(contender.computes, (name, loss)), max_difference),
        }

    def turn(name: str) -> Callable[[], dict[str, float]]:
        return lambda: _timed(contenders[name].loss, problem)

    # each contender has run once already, for its memory
    runs = turns.rounds({name: turn(name) for name in memory})
    typical = {name: medians(of) for name, of in runs.items()}
    if not typical and len(absent) < len(contenders):
        return  # there was no time for the case
    for name in contenders:
        if name in absent:
            yield Row(case, name, dict.fromkeys(PARTS, absent[name]))
        if name not in typical:
            continue
        figures = {**typical[name], **memory[name]}
        if baseline in typical:
            figures["of_baseline"] = typical[name]["both"] / typical[baseline]["both"]
        if OURS in typical:
            figures |= {f"ours_as_fast_{part}": typical[name][part] / typical[OURS][part] for part in PARTS}
        yield Row(case, name, figures, runs[name])


def _warmed_loss_and_peak(loss: Callable[..., Tensor], small: Problem, problem: Problem) -> tuple[float, Figure]:
    _timed(loss, small)
    return _loss_and_peak(loss, problem)


def _loss_and_peak(loss: Callable[..., Tensor], problem: Problem) -> tuple[float, Figure]:
    """Return the loss, and the peak bytes of its forward and backward, including the gradients."""
    values = []

    def call() -> object:
        value = loss(*problem.arguments)
        values.append(value.item())
        return torch.autograd.grad(value, problem.sources)

    peak = peak_memory(call, problem.device)
    return values[0], peak


def _timed(loss: Callable[..., Tensor], problem: Problem) -> dict[str, float]:
    """Return the seconds of forward and backward. The timer waits for the device."""
    start = timer()
    value = loss(*problem.arguments)
    middle = timer()
    torch.autograd.grad(value, problem.sources)
    end = timer()
    return {"forward": middle - start, "backward": end - middle, "both": end - start}


def _error(name: str, loss: float, of: str, expected: float, max_difference: float) -> float:
    """Return the relative difference of a loss from that of the first contender that computes it."""
    error = abs(loss - expected) / abs(expected)
    if not error <= max_difference:
        raise Disagreement(
            f"{name} computes the loss {loss:.6g}, {of} {expected:.6g}: expected a relative error of at most "
            f"{max_difference:g}, got {error:.2g}"
        )
    return error
