"""What a run did, kept with its checkpoints: every step and validation once, however often the run was killed.

    RUN/history/grounding-00003-000012-a0002-3f9a81c0.jsonl   the steps that led to it from the one before

A line is an event of events.py as JSON. With `run.log_samples` that of a step holds the ids of its samples, chunk by
chunk. What came after the last checkpoint of an attempt that was killed is in no file: it was done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from groundray.storage.folder import Folder
from groundray.training import attempts
from groundray.training.attempts import FencingToken
from groundray.training.events import EpochDone, StageDone, StepDone
from groundray.training.layout import HISTORY

KINDS = {kind.__name__: kind for kind in (StepDone, EpochDone, StageDone)}
Told = StepDone | EpochDone | StageDone


def line(event: Told, samples: list[list[str]] | None = None) -> str:
    """An event as it is kept.

    Args:
        samples: the ids of its samples, a list for each chunk of the global batch.
    """
    told: dict[str, Any] = {"event": type(event).__name__, **vars(event)}
    return json.dumps(told | ({"samples": samples} if samples is not None else {}), ensure_ascii=False)


def write(run: Folder, name: str, lines: tuple[str, ...]) -> None:
    """Keep some lines, under the name of the checkpoint that they led to."""
    if lines:
        (run / HISTORY).make().write_bytes(f"{name}.jsonl", "".join(f"{one}\n" for one in lines).encode())


def read(run: Folder, warn: Callable[[str], None] = lambda _: None) -> Iterator[tuple[Told, list[list[str]] | None]]:
    """The events of a run in order, each once, and the samples of those steps that were kept with theirs.

    An attempt's lines count up to where the next one went on: what it did after that was done again, and what a
    worker of a dead host wrote later is not part of the run. A line that is damaged is left out, with a warning.
    """
    begun, lines = attempts.begun(run), by_attempt(run, warn)
    order = {stage: place for begin in begun.values() for place, stage in enumerate(begin["stages"])}

    def place(told: dict[str, Any]) -> tuple[int, int, int]:
        """Where in the run: its stage, its step, and a validation after the step before it."""
        return order[told["stage"]], told["step"], list(KINDS).index(told["event"])

    counted: dict[tuple[int, int, int], dict[str, Any]] = {}
    end = (len(order), 0, 0)
    for mark in sorted(begun.keys() | lines.keys(), reverse=True):  # newer ones may build on one with a damaged note
        own = {place(told): told for told in lines.get(mark, ()) if told["stage"] in order}
        counted = {where: told for where, told in own.items() if where < end} | counted
        if mark in begun and (stage := begun[mark]["stage"]) is not None:
            validated = 1 if begun[mark]["step"] else 2  # at the edge of an epoch, its validation is done
            end = min(end, (order[stage], begun[mark]["done"], validated))
    for _, told in sorted(counted.items(), key=lambda one: one[0]):
        event, samples = _event(told)
        yield event, samples


def by_attempt(run: Folder, warn: Callable[[str], None] = lambda _: None) -> dict[FencingToken, list[dict[str, Any]]]:
    """All lines that attempts have kept, whether they count or not."""
    folder, found = run / HISTORY, {}
    for name in folder.names():
        mark = attempts.token_of(name)
        if mark.number < 0 or not name.endswith(".jsonl"):  # a process was killed while it wrote
            continue
        own: list[dict[str, Any]] = found.setdefault(mark, [])
        for text in folder.read_bytes(name).splitlines():
            try:
                told = json.loads(text)
                _event(told)
                own.append(told)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                warn(f"a line of {folder}/{name} is damaged and left out")
    return found


def _event(told: dict[str, Any]) -> tuple[Told, list[list[str]] | None]:
    """The event of a line, and its samples."""
    fields = {key: value for key, value in told.items() if key not in ("event", "samples")}
    return KINDS[told["event"]](**fields), told.get("samples")
