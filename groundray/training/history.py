"""The history of a run: every step and validation once, however often the run was interrupted.

    RUN/history/grounding-00003-000012-a0002-3f9a81c0.jsonl   the steps between this checkpoint and the previous one

A line is an event of events.py as JSON; with `run.log_samples`, that of a step has the ids of its samples, chunk by
chunk. `line` is its number and the number of all lines of its file, `crc32` the checksum of all its other keys: damage
costs one line, and a file that is cut off is told from a whole one. Steps after the last checkpoint of an attempt that
was killed are in no file: they were done again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from groundray.data.stream import Step
from groundray.distributed import gather_strings
from groundray.storage.folder import Folder
from groundray.training import attempts
from groundray.training.attempts import FencingToken
from groundray.training.events import EpochDone, StageDone, StepDone
from groundray.training.layout import HISTORY

KINDS = {kind.__name__: kind for kind in (StepDone, EpochDone, StageDone)}
Recorded = StepDone | EpochDone | StageDone


def to_line(event: Recorded, samples: list[list[str]] | None = None) -> str:
    """Returns an event as a line of JSON.

    Args:
        samples: the ids of its samples, a list for each chunk of the global batch.
    """
    record: dict[str, Any] = {"event": type(event).__name__, **vars(event)}
    return json.dumps(record | ({"samples": samples} if samples is not None else {}), ensure_ascii=False)


def gather_sample_ids(batch: Step) -> list[list[str]]:
    """Returns the ids of a global batch's samples, chunk by chunk, gathered from all ranks."""
    own = json.dumps([samples.ids for _, samples in batch.chunks])
    return [ids for text in gather_strings(own) for ids in json.loads(text)]


def write(run: Folder, name: str, lines: tuple[str, ...]) -> None:
    """Write lines under the name of the checkpoint that follows them."""
    if lines:
        numbered = (json.loads(line) | {"line": [number, len(lines)]} for number, line in enumerate(lines, start=1))
        content = "".join(f"{json.dumps(_seal(record), ensure_ascii=False)}\n" for record in numbered)
        (run / HISTORY).make().write_bytes(f"{name}.jsonl", content.encode("utf-8", "surrogatepass"))


def read(
    run: Folder, warn: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[Recorded, list[list[str]] | None]]:
    """Yields the events of a run in order, each once, and the samples of those steps that recorded them.

    The lines of an attempt count up to the point where the next one resumed: what follows was done again, or written
    by a worker on a host that was cut off. Damaged lines are left out, with a warning.
    """
    begun, lines = attempts.begun(run), by_attempt(run, warn)
    order = {stage: index for note in begun.values() for index, stage in enumerate(note["stages"])}

    def position(record: dict[str, Any]) -> tuple[int, int, int]:
        """Returns where a record is in the run: stage, step, and a validation after the step before it."""
        return order[record["stage"]], record["step"], list(KINDS).index(record["event"])

    counted: dict[tuple[int, int, int], dict[str, Any]] = {}
    end = (len(order), 0, 0)
    for token in sorted(begun.keys() | lines.keys(), reverse=True):  # newer ones may build on one with a damaged note
        own = {position(record): record for record in lines.get(token, ()) if record["stage"] in order}
        counted = {where: record for where, record in own.items() if where < end} | counted
        if token in begun and (stage := begun[token]["stage"]) is not None:
            validated = 1 if begun[token]["step"] else 2  # at the end of an epoch, its validation is done
            end = min(end, (order[stage], begun[token]["done"], validated))
    for _, record in sorted(counted.items(), key=lambda item: item[0]):
        yield _from_record(record)


def by_attempt(run: Folder, warn: Callable[[str], None] = lambda _: None) -> dict[FencingToken, list[dict[str, Any]]]:
    """Returns all lines of each attempt, whether they count or not."""
    folder = run / HISTORY
    records: dict[FencingToken, list[dict[str, Any]]] = {}
    for name in folder.names():
        token = attempts.token_of(name)
        if token.number < 0 or not name.endswith(".jsonl"):  # of a process that was killed while it wrote
            continue
        own = records.setdefault(token, [])
        try:
            texts = folder.read_bytes(name).splitlines()
        except OSError as error:  # a folder, say, where a file was
            warn(f"{folder}/{name} cannot be read and is left out: {error}")
            continue
        if not texts:
            warn(f"{folder}/{name} is damaged: it is empty")
        expected, lines = len(texts), 0
        for text in texts:
            try:
                record = json.loads(text)
                _check_seal(record)
                if "line" in record:
                    expected = record.pop("line")[1]
                _from_record(record)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                continue
            own.append(record)
            lines += 1
        if (missing := expected - lines) > 0:
            warn(f"{folder}/{name} is damaged: {missing} of its {expected} lines are left out")
    return records


def _seal(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record with its checksum."""
    return record | {"crc32": zlib.crc32(json.dumps(record, sort_keys=True).encode())}


def _check_seal(record: dict[str, Any]) -> None:
    """Remove the checksum of a record. Records of earlier versions have none.

    Raises:
        ValueError: the record is damaged.
    """
    if "crc32" in record or "line" in record:
        checksum = record.pop("crc32", None)
        if checksum != _seal(record)["crc32"]:
            raise ValueError("the checksum does not match")


def _from_record(record: dict[str, Any]) -> tuple[Recorded, list[list[str]] | None]:
    """Returns the event of a record, and its samples."""
    fields = {key: value for key, value in record.items() if key not in ("event", "samples")}
    return KINDS[record["event"]](**fields), record.get("samples")
