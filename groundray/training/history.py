"""The history of a run: every step and validation once, however often the run was interrupted.

    RUN/history/grounding-00003-000012-a0002-3f9a81c0.jsonl   the steps between this checkpoint and the previous one

A line is an event of events.py as JSON; with `run.log_samples`, that of a step has the ids of its samples, chunk by
chunk. `line` is its number and the number of all lines of its file, `crc32` the checksum of all its other keys: damage
costs one line, and a file that is cut off is told from a whole one. Steps after the last checkpoint of an attempt that
was killed are in no file: they were done again.
"""

from __future__ import annotations

import heapq
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from groundray.data.ahead import map_ahead
from groundray.data.plan import Cursor
from groundray.data.stream import Step
from groundray.distributed import gather_strings
from groundray.storage.folder import Folder
from groundray.training import attempts
from groundray.training.attempts import READS, FencingToken
from groundray.training.events import EpochDone, StageDone, StepDone
from groundray.training.layout import HISTORY

KINDS = {kind.__name__: kind for kind in (StepDone, EpochDone, StageDone)}
Recorded = StepDone | EpochDone | StageDone
Position = tuple[int, int, int]  # of an event in a run: stage, step, kind
NAME = re.compile(r"(\w+)-(?:(\d+)-(\d+)|done)-a")


@dataclass(frozen=True)
class HistoryFile:
    """The name of a file, and what follows from it.

    Attributes:
        name: in `RUN/history/`.
        stage: the stage of its events.
        after: where its events begin: at the cursor of the attempt's previous file, or where the attempt resumed; None
            if that is not known.
        until: the cursor of the checkpoint that follows its events; None in the file of a finished stage.
    """

    name: str
    stage: str
    after: Cursor | None
    until: Cursor | None


class _Segment(NamedTuple):
    """A file of the attempt with a rank, 0 for the newest, whose events count from `start` up to `end`."""

    rank: int
    start: Position
    end: Position
    file: HistoryFile


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
    run: Folder,
    warn: Callable[[str], None] = lambda _: None,
    is_wanted: Callable[[HistoryFile], bool] = lambda _: True,
) -> Iterator[tuple[Recorded, list[list[str]] | None]]:
    """Yields the events of a run in order, each once, and the samples of those steps that recorded them.

    The lines of an attempt count up to the point where the next one resumed: what follows was done again, or written
    by a worker on a host that was cut off. Damaged lines are left out, with a warning. Files are read when their
    events are due, those of a store ahead of that; memory holds few of them at a time.

    Args:
        is_wanted: is asked before a file is read; the events of others are left out.
    """
    begun = attempts.begun(run)
    order = {stage: index for note in begun.values() for index, stage in enumerate(note["stages"])}
    files = _files(run, begun, order)
    end: Position = (len(order), 0, 0)
    successive: list[_Segment] = []
    others: list[list[_Segment]] = []  # of attempts with damaged notes: nothing tells where they began
    for rank, token in enumerate(sorted(begun.keys() | files.keys(), reverse=True)):
        start = _start(begun[token], order) if token in begun else (-1, 0, 0)
        segment = [_Segment(rank, start, end, file) for file in files.get(token, ()) if start < end]
        if token in begun:
            successive = segment + successive
            end = min(end, start)
        else:
            others.append(segment)
    with ThreadPoolExecutor(READS, thread_name_prefix="groundray-history") as pool:
        streams = [_records(run / HISTORY, stream, order, warn, is_wanted, pool) for stream in (successive, *others)]
        last: Position | None = None
        for where, _, record in heapq.merge(*streams, key=lambda item: item[:2]):
            if where != last:  # else a newer attempt has it too
                yield _from_record(record)
            last = where


def first_times(run: Folder, tokens: Collection[FencingToken]) -> dict[FencingToken, float]:
    """Returns when the first event of each of these attempts was recorded, in seconds since 1970, if one was."""
    files = _files(run, {}, {}) if tokens else {}
    folder = run / HISTORY

    def first(token: FencingToken) -> float | None:
        for file in files.get(token, ()):
            if records := _parse(folder, file.name, _content(folder, file.name), lambda _: None):
                return min(record["time"] for record in records)
        return None

    with ThreadPoolExecutor(READS) as pool:
        found = zip(tokens, pool.map(first, tokens), strict=True)
        return {token: time for token, time in found if time is not None}


def _start(note: Mapping[str, Any], order: Mapping[str, int]) -> Position:
    """Returns the position from which on the events of an attempt count, which those of older attempts do not reach."""
    if note["stage"] is None:  # all are finished
        return len(order), 0, 0
    # an earlier version validated at the ends of epochs alone, and did not write it
    validated = note.get("validated", not note["step"]) or not note["step"]
    return order[note["stage"]], note["done"], 2 if validated else 1


def _files(
    run: Folder, begun: Mapping[FencingToken, Mapping[str, Any]], order: Mapping[str, int]
) -> dict[FencingToken, list[HistoryFile]]:
    """Returns the files of each attempt in the order in which they were written."""
    found: dict[FencingToken, list[HistoryFile]] = {}
    for name in (run / HISTORY).names():
        token = attempts.token_of(name)
        if token.number >= 0 and name.endswith(".jsonl"):  # others are of a process that was killed while it wrote
            match = NAME.match(name)
            until = Cursor(int(match[2]), int(match[3])) if match and match[2] else None
            found.setdefault(token, []).append(HistoryFile(name, match[1] if match else "", None, until))
    for token, files in found.items():
        files.sort(key=lambda file: (order.get(file.stage, -1), file.until is None, file.until or Cursor(), file.name))
        if (note := begun.get(token)) and note["stage"] is not None:
            reached = {stage: Cursor() for stage in order if order[stage] > order[note["stage"]]}
            reached[note["stage"]] = Cursor(note["epoch"], note["step"])
            for index, file in enumerate(files):
                files[index] = replace(file, after=reached.get(file.stage))
                if file.until:
                    reached[file.stage] = file.until
    return found


def _records(
    folder: Folder,
    segments: Sequence[_Segment],
    order: Mapping[str, int],
    warn: Callable[[str], None],
    is_wanted: Callable[[HistoryFile], bool],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Position, int, dict[str, Any]]]:
    """Yields the records of files that count, with their positions and the ranks of their attempts."""
    wanted = (segment for segment in segments if is_wanted(segment.file))
    contents = map_ahead(
        pool, lambda segment: (segment, _content(folder, segment.file.name)), wanted, 2 if folder.local else READS
    )
    for segment, content in contents:
        for record in _parse(folder, segment.file.name, content, warn):
            if record["stage"] in order:
                # a validation comes after the step before it
                where = (order[record["stage"]], record["step"], list(KINDS).index(record["event"]))
                if segment.start <= where < segment.end:
                    yield where, segment.rank, record


def _content(folder: Folder, name: str) -> bytes | OSError:
    """Returns the content of a file, or why it cannot be read."""
    try:
        return folder.read_bytes(name)
    except OSError as error:  # a folder, say, where a file was
        return error


def _parse(folder: Folder, name: str, content: bytes | OSError, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the whole lines of a file, whether they count or not."""
    if isinstance(content, OSError):
        warn(f"{folder}/{name} cannot be read and is left out: {content}")
        return []
    texts = content.splitlines()
    if not texts:
        warn(f"{folder}/{name} is damaged: it is empty")
    records: list[dict[str, Any]] = []
    expected = len(texts)
    for text in texts:
        try:
            record = json.loads(text)
            _check_seal(record)
            if "line" in record:
                expected = record.pop("line")[1]
            _from_record(record)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            continue
        records.append(record)
    if (missing := expected - len(records)) > 0:
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
