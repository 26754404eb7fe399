"""A history is read a file at a time, whatever its length, and gives what all of it at once gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_history
import numpy as np
import pytest
from made_history import STAGE
from traced_memory import least_peak

from groundray.storage.folder import Folder
from groundray.training import attempts, history
from groundray.training.attempts import FencingToken
from groundray.training.step_ranges import StepRanges


def read_at_once(run: Folder) -> list[dict[str, Any]]:
    """Return what `history.read` should yield: the lines of all attempts, of which the newer ones replace the older."""
    notes = attempts.begun(run)
    lines: dict[FencingToken, list[dict[str, Any]]] = {token: [] for token in notes}
    for name in (run / "history").names():
        for text in (run / "history").read_bytes(name).splitlines():
            if text.startswith(b"{"):
                record = {key: value for key, value in json.loads(text).items() if key not in ("line", "crc32")}
                lines.setdefault(attempts.token_of(name), []).append(record)
    counted: dict[tuple[int, bool], dict[str, Any]] = {}
    end = (10**9, False)
    for token in sorted(lines, reverse=True):
        own = {(record["step"], record["event"] == "EpochDone"): record for record in lines[token]}
        counted = {place: record for place, record in own.items() if place <= end} | counted
        if token in notes:
            end = min(end, (notes[token]["done"], notes[token]["step"] == 0))
    return [record for _, record in sorted(counted.items())]


@pytest.mark.parametrize("seed", range(12))
def test_a_history_read_by_files_is_that_read_at_once(tmp_path: Path, seed: int) -> None:
    """Attempts resume where older ones left checkpoints; some notes and some lines are damaged."""
    random = np.random.default_rng(seed)
    run, epoch_steps, total = Folder.at(tmp_path).make(), 7, 70
    checkpoints = [0]
    for number in range(8):
        done = int(random.choice(checkpoints))
        checkpoints = [each for each in checkpoints if each <= done]
        attempt = made_history.begin(run, done, epoch_steps)
        for _ in range(int(random.integers(0, 4))):
            last = min(total, done + int(random.integers(1, 9)))
            if last == done:
                break
            events = made_history.steps(done + 1, last, total, epoch_steps, when=1e9 + number)
            name = made_history.write(attempt, events, epoch_steps)
            if random.random() < 0.2:
                spoilt = (run / "history").read_bytes(name).splitlines(keepends=True)
                spoilt[0] = b"x" + spoilt[0][1:]
                (run / "history").write_bytes(name, b"".join(spoilt))
            done = last
            checkpoints.append(done)
        if random.random() < 0.3:
            (run / "attempts").write_bytes(f"{attempt.token}-from.json", b"{")
    expected = read_at_once(run)
    found = [{"event": type(event).__name__, **vars(event)} for event, _ in history.read(run)]
    assert found == expected
    times = history.first_times(run, list(attempts.begun(run)))
    for token, time in times.items():
        own = [name for name in (run / "history").names() if attempts.token_of(name) == token]
        texts = [text for name in own for text in (run / "history").read_bytes(name).splitlines()]
        assert time == min(json.loads(text)["time"] for text in texts if text.startswith(b"{"))


def long_run(folder: Path, files: int, steps: int) -> Folder:
    """Write a run with a number of files of so many steps each."""
    run = Folder.at(folder).make()
    attempt = made_history.begin(run, 0, steps)
    for number in range(files):
        events = made_history.steps(number * steps + 1, (number + 1) * steps, files * steps, steps)
        made_history.write(attempt, events, steps)
    return run


def test_memory_does_not_grow_with_the_history(tmp_path: Path) -> None:
    """How far the threads that read are ahead differs from call to call, by a file or two of a hundred more."""
    peaks, sizes = [], []
    for files in (10, 110):
        run = long_run(tmp_path / str(files), files, 100)
        sizes.append(sum((run / "history").sizes().values()))

        def read_all(run: Folder = run, files: int = files) -> None:
            assert sum(1 for _ in history.read(run, pytest.fail)) == files * 101

        peaks.append(least_peak(read_all))
    assert peaks[1] - peaks[0] < (sizes[1] - sizes[0]) / 4  # parsed, a file takes four times its size


def test_files_that_are_not_wanted_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_run(tmp_path, 4, 5)
    names = (run / "history").names()
    asked: list[history.HistoryFile] = []
    read: list[str] = []
    plain = Folder.read_bytes
    monkeypatch.setattr(Folder, "read_bytes", lambda self, name: read.append(name) or plain(self, name))
    found = list(history.read(run, pytest.fail, lambda file: asked.append(file) or file.name == names[2]))
    assert [name for name in read if name.endswith(".jsonl")] == [names[2]]
    assert [event.step for event, _ in found] == [11, 12, 13, 14, 15, 15]
    cursors = [(file.after, file.until) for file in asked]
    assert [(after.epoch, until.epoch) for after, until in cursors if after and until] == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
    ]
    assert {file.stage for file in asked} == {STAGE}


@pytest.mark.parametrize("seed", range(8))
def test_ranges_of_steps_are_a_set(seed: int) -> None:
    random = np.random.default_rng(seed)
    regular = [*range(1, 60), *range(90, 120), *range(60, 90), *range(200, 900, 50)]
    steps = [int(step) for step in random.permutation(regular)] if seed % 2 else regular
    ranges, plain = StepRanges(), set[int]()
    for step in steps:
        ranges.add(step)
        plain.add(step)
        assert step in ranges
    for found in (ranges, StepRanges.parse(json.loads(json.dumps(ranges.as_json()))), StepRanges(steps)):
        assert {step for step in range(-5, 1000) if step in found} == plain
        assert found.last == 850
    if not seed % 2:
        assert ranges.as_json() == [[1, 120, 1], [200, 851, 50]]


READ = """
import sys, time
from groundray.resident_memory import peak_resident
from groundray.storage.folder import Folder
from groundray.training import history, recovery
before, began = peak_resident(), time.monotonic()
count = sum(1 for _ in history.read(Folder.at(sys.argv[1])))
recovery.recoveries(Folder.at(sys.argv[1]))
grown = peak_resident() - before
print(count, grown, time.monotonic() - began)
"""


@pytest.mark.slow
def test_a_million_steps_take_little_memory(tmp_path: Path) -> None:
    """Measured before: 2,928 MB."""
    run = long_run(tmp_path, 1000, 1000)
    output = subprocess.run([sys.executable, "-c", READ, str(run)], check=True, capture_output=True, text=True).stdout
    count, grown, seconds = map(float, output.split())
    print(f"{count:,.0f} events, {grown / 1e6:.0f} MB, {seconds:.1f} s")
    assert count == 1_001_000
    assert grown < 200e6
