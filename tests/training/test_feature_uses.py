"""Uses of trunk features: what an active run reads is never deleted, the least recently used go first."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from groundray.storage.folder import Folder
from groundray.training import attempts, feature_uses
from groundray.training.attempts import Attempt
from groundray.training.feature_uses import (
    IDLE_SECONDS,
    delete_features,
    is_active,
    make_room,
    mark_used,
    release,
    stored_features,
    user_of,
)

HOUR = 3600.0
FIRST, SECOND, THIRD = (f"{number:016x}" for number in (1, 2, 3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Hours that have passed since the features were written."""
    hours, real = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: real() + hours[0] * HOUR)
    return hours


@pytest.fixture
def cache(anywhere: str) -> Folder:
    """Three trunk features of 1,000 bytes."""
    cache = Folder.at(anywhere) / ".features"
    for key in (FIRST, SECOND, THIRD):
        (cache / key).make().write_bytes("part-00000-000.parquet", b"x" * 900)
        (cache / key).write_bytes("dataset.json", b"x" * 100)
    return cache


def begin(run: Folder) -> Attempt:
    """Begin an attempt at a run."""
    attempt = Attempt(run, attempts.claim(run))
    attempt.write_begin({})
    return attempt


def keys(cache: Folder) -> list[str]:
    return [features.folder.name for features in stored_features(cache)]


def test_the_least_recently_used_are_deleted(cache: Folder, clock: list[float]) -> None:
    run = cache.parent / "done"
    run.make().write_sealed("result.json", {})
    for hours, key in ((10, SECOND), (20, FIRST), (30, THIRD)):
        clock[0] = hours
        mark_used(cache / key, run)
    assert keys(cache) == [SECOND, FIRST, THIRD]
    assert [features.bytes for features in stored_features(cache)] == [1000] * 3
    assert make_room(cache, 1000, 4000, set()) == []
    (line,) = make_room(cache, 500, 3000, set())
    assert f"{cache / SECOND}" in line
    assert "20.0" not in line
    assert keys(cache) == [FIRST, THIRD]
    lines = make_room(cache, 1000, 1500, {THIRD})  # what this run reads stays
    assert len(lines) == 2
    assert "more than the limit features.max_gb" in lines[1]
    assert keys(cache) == [THIRD]
    assert [name for name in cache.files() if not name.startswith(THIRD)] == [
        name for name in cache.files() if name.startswith(f"uses/{THIRD}")
    ]


def test_what_an_active_run_reads_stays(cache: Folder, clock: list[float]) -> None:
    run = cache.parent / "run"
    mark_used(cache / FIRST, run)
    clock[0] = 1.0
    begin(run)
    clock[0] = IDLE_SECONDS / HOUR + 0.9  # the use is old, the attempt is not
    assert user_of(stored_features(cache)[-1]) == f"read by {run}"
    assert [name for name in keys(cache) if name != FIRST] == keys(cache)[:2]
    make_room(cache, 0, 0, set())
    assert keys(cache) == [FIRST]

    attempt = attempts.latest(run)
    clock[0] = 20.0
    assert not is_active(run)  # killed
    attempt.heartbeat("grounding", 3)
    assert is_active(run)
    attempt.heartbeat("grounding", 4, ended="stopped")
    assert not is_active(run)
    make_room(cache, 0, 0, set())
    assert keys(cache) == []


def test_what_a_run_released_may_go(cache: Folder, clock: list[float]) -> None:
    """A sweep keeps the features of its trials until it ends."""
    sweep, other = cache.parent / "sweep", cache.parent / "other"
    for key, user in ((FIRST, sweep), (SECOND, sweep), (SECOND, other)):
        mark_used(cache / key, user)
    clock[0] = 1
    first, second = (features for features in stored_features(cache) if features.folder.name in (FIRST, SECOND))
    assert user_of(first) == f"read by {sweep}"
    release(cache, sweep)
    assert user_of(first) == ""
    assert user_of(second) == f"read by {other}"


def test_what_is_being_written_stays(cache: Folder) -> None:
    (features, *_) = stored_features(cache)
    assert "written" in user_of(features)
    assert not delete_features(features)
    assert cache.files() == [f"{key}/{name}" for key in (FIRST, SECOND, THIRD) for name in ("dataset.json", PART)]


PART = "part-00000-000.parquet"


@pytest.mark.parametrize("anywhere", ["local"], indirect=True)
def test_a_reader_and_a_deletion_at_once(cache: Folder, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader comes after the deletion has looked for uses: it waits until the features are gone."""
    clock[0] = 20.0
    run, ended = cache.parent / "run", []
    monkeypatch.setattr(feature_uses, "POLL_SECONDS", 0.01)
    real = user_of

    def looked(features: feature_uses.StoredFeatures, idle_seconds: float = IDLE_SECONDS) -> str:
        found = real(features, idle_seconds)
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        return found

    reader = threading.Thread(target=lambda: ended.append(mark_used(cache / FIRST, run)))
    monkeypatch.setattr(feature_uses, "user_of", looked)
    assert delete_features(stored_features(cache)[0])
    reader.join(10)
    assert ended
    assert not (cache / FIRST).exists()

    # the reader comes first: the deletion is given up
    monkeypatch.setattr(feature_uses, "user_of", real)
    (second, _) = stored_features(cache)
    mark_used(second.folder, run)
    assert not delete_features(second)
    # a deletion that was killed is passed over
    (cache / "deleting").make().write_json(f"{SECOND}.json", {"time": time.time() - HOUR})
    mark_used(cache / SECOND, run)
    assert not (cache / "deleting").files()


def test_damaged_uses_are_passed_over(cache: Folder, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"[]", b'{"run": 3}', b'{"run": "x://y", "time": 0}')):
        (cache / "uses").make().write_bytes(f"{FIRST}-{number}.json", content)
    assert len(stored_features(cache)) == 3
    assert all("written" in user_of(features) for features in stored_features(cache))
