"""Comparing implementations of one loss: forward and backward in turns, peak memory, and that they are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from groundray.benchmarks.measure import (
    Column,
    Figure,
    Missing,
    Row,
    Stopwatch,
    interleaved,
    medians,
    megabytes,
    peak_memory,
    seconds,
    times,
    too_large,
)

OURS = "groundray"
MOST_DIFFERENCE = 1e-3
PARTS = ("forward", "backward", "both")


class Disagreement(RuntimeError):
    """A contender computes something else, so that its time says nothing."""


@dataclass(frozen=True)
class Problem:
    """What a loss is computed of, and the tensors among it whose gradients are wanted."""

    arguments: tuple[Any, ...]
    sources: tuple[Tensor, ...]

    @property
    def device(self) -> str:
        return self.sources[0].device.type

    @property
    def nbytes(self) -> int:
        """Bytes of the sources, and of their gradients."""
        return sum(source.nbytes for source in self.sources)


@dataclass(frozen=True)
class Contender:
    """A way to compute the loss.

    Attributes:
        needs: bytes that forward and backward hold at their peak, beyond the sources and their gradients.
        absent: why it cannot run at all.
    """

    loss: Callable[..., Tensor]
    needs: int = 0
    absent: Missing | None = None


def columns(baseline: str) -> tuple[Column, ...]:
    """The columns of a table of such comparisons."""
    return (
        *(Column(part, seconds, (part,)) for part in PARTS),
        Column(f"time of\n{baseline}", times, ("of_baseline",)),
        Column(f"ours is x times as fast\n{' / '.join(PARTS)}", times, tuple(f"ours_as_fast_{part}" for part in PARTS)),
        Column("memory", megabytes, ("scratch",)),
        Column("error", lambda error: f"{error:.0e}", ("error",)),
    )


def compare(
    case: Mapping[str, int | str],
    contenders: Mapping[str, Contender],
    problem: Problem,
    small: Problem,
    baseline: str,
    repeats: int,
    most_seconds: float = float("inf"),
) -> Iterator[Row]:
    """A row for each contender, groundray's own first.

    Args:
        small: a smaller problem of the same kind, to warm up with.
        baseline: the contender whose time is 1.
        most_seconds: no round but the first starts when the timed rounds have taken so long.

    Raises:
        Disagreement: a contender's loss is another one.
    """
    absent: dict[str, Missing] = {}
    held: dict[str, dict[str, Figure]] = {}
    expected = None
    for name, contender in contenders.items():
        # the gradients are yet to come, the sources are there
        if reason := contender.absent or too_large(contender.needs + problem.nbytes, problem.device):
            absent[name] = reason
            continue
        _timed(contender.loss, small)
        loss, peak = _watched(contender.loss, problem)
        expected = loss if expected is None else expected
        held[name] = {
            "scratch": peak if isinstance(peak, Missing) else max(0.0, peak - problem.nbytes),
            "peak": peak,
            "error": _error(name, loss, expected),
        }

    def turn(name: str) -> Callable[[], dict[str, float]]:
        return lambda: _timed(contenders[name].loss, problem)

    # each has run once already, while its memory was measured
    runs = interleaved({name: turn(name) for name in held}, repeats, most_seconds, warm_up=False)
    typical = {name: medians(of) for name, of in runs.items()}
    for name in contenders:
        if name in absent:
            yield Row(case, name, dict.fromkeys(PARTS, absent[name]))
            continue
        figures = {**typical[name], **held[name]}
        if baseline in typical:
            figures["of_baseline"] = typical[name]["both"] / typical[baseline]["both"]
        if OURS in typical:
            figures |= {f"ours_as_fast_{part}": typical[name][part] / typical[OURS][part] for part in PARTS}
        yield Row(case, name, figures, runs[name])


def _watched(loss: Callable[..., Tensor], problem: Problem) -> tuple[float, Figure]:
    """The loss, and the bytes that it and the gradients take at their peak, the gradients among them."""
    values = []

    def call() -> object:
        value = loss(*problem.arguments)
        values.append(value.item())
        return torch.autograd.grad(value, problem.sources)

    peak = peak_memory(call, problem.device)
    return values[0], peak


def _timed(loss: Callable[..., Tensor], problem: Problem) -> dict[str, float]:
    watch = Stopwatch(problem.device)
    value = loss(*problem.arguments)
    watch.mark()
    torch.autograd.grad(value, problem.sources)
    watch.mark()
    forward, backward = watch.seconds()
    return {"forward": forward, "backward": backward, "both": forward + backward}


def _error(name: str, loss: float, expected: float) -> float:
    """The relative difference of a loss from groundray's."""
    error = abs(loss - expected) / abs(expected)
    if not error <= MOST_DIFFERENCE:
        raise Disagreement(
            f"{name} computes the loss {loss:.6g}, groundray {expected:.6g}: expected a relative error of at most "
            f"{MOST_DIFFERENCE:g}, got {error:.2g}"
        )
    return error
