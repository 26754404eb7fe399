"""`python -m groundray.clean` from its command line."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import SmallWorld

from groundray import clean, config
from groundray.storage.folder import Folder
from groundray.storage.owner import owned
from groundray.training import attempts, checkpoint, preflight, progression
from groundray.training.events import Event, StepDone
from groundray.training.worker import InProcess

DAYS = 24 * 3600


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep this machine's own caches and temporary files out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


def age(folder: Path, days: float = 3) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - days * DAYS,) * 2)


def cleaned(storage: object, *words: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """Run the command and return its items by path below the storage."""
    out = Folder.at(str(storage)).parent / "items"
    assert clean.main([str(storage), *words, "--json", f"{out}/items.json"]) == status
    items = out.read_json("items.json")
    return {item["path"].removeprefix(f"{storage}/"): item for item in items}


def train(world: SmallWorld, storage: Path) -> list[Event]:
    """Train a run with trunk features, or end it again, and return its events."""
    words = ("--grounding.trains.trunk=false", f"--run.storage={storage}", "--grounding.epochs=4", "--run.name=done")
    run = preflight.check(config.load("demo", world.settings(*words)))
    preflight.claim(run)
    events: list[Event] = []
    progression.run_stages(run, InProcess(events.append))
    return events


@pytest.fixture(scope="module")
def trained(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with trunk features."""
    storage = tmp_path_factory.mktemp("storage")
    assert any(isinstance(event, StepDone) for event in train(world, storage))
    return storage


@pytest.mark.thorough
def test_a_finished_run_is_cleaned_and_still_ends_at_once(
    trained: Path, world: SmallWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    age(trained)
    before = {file: file.read_bytes() for file in trained.rglob("*") if file.is_file()}
    shown = cleaned(trained)
    assert {file for file in trained.rglob("*") if file.is_file()} == before.keys()  # nothing is deleted without --yes
    assert "may go: add --yes" in capsys.readouterr().out
    uses = sum(len(content) for file, content in before.items() if "uses" in file.parts)  # counted with no features
    assert sum(item["bytes"] for item in shown.values()) + uses == sum(map(len, before.values()))
    features = [path for path, item in shown.items() if item["kind"] == "features"]
    checkpoints = [path for path, item in shown.items() if item["kind"] == "checkpoints" and not item["kept"]]
    assert len(features) == 2
    assert len(checkpoints) >= 1
    assert shown["done"]["kind"] == "results"
    assert shown["done"]["kept"]

    deleted = cleaned(trained, "--yes")
    assert {path for path, item in deleted.items() if item["deleted"]} == {*features, *checkpoints}
    left = {file for file in trained.rglob("*") if file.is_file()}
    gone = {str(file.relative_to(trained)) for file in before.keys() - left}
    assert all(name.startswith((*features, *checkpoints, ".features/uses/")) for name in gone)
    assert all(before[file] == file.read_bytes() for file in left & before.keys())
    assert not any(isinstance(event, StepDone) for event in train(world, trained))
    assert not any(item["deleted"] for item in cleaned(trained, "--yes").values())


def write(folder: Folder, *names: str) -> None:
    for name in names:
        parent, _, file = name.rpartition("/")
        (folder / (parent or ".")).make().write_bytes(file, b"12345")


@pytest.mark.parametrize("anywhere", ["local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_what_is_in_use_is_kept(anywhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Folder.at(anywhere) / "runs"
    for name in ("active", "killed", "complete"):
        run = storage / name
        write(run, "config.yaml", "stacks/worker-0-1.txt")
        write(run / "index/0123456789abcdef", "dataset.json", "compact.bin", "ivf.data", "making/ivf-0001.json")
        attempt = attempts.Attempt(run, attempts.claim(run))
        attempt.write_begin({})
        token = f"a{attempt.token}"
        write(run, f"checkpoints/grounding-00001-000000-{token}/manifest.json", "ray/state.json")
        write(run, "checkpoints/grounding-00009-000000-a0000-01234567/manifest.json", f"history/x-{token}.jsonl")
        write(run, "history/x-a0000-01234567.jsonl")
        if name == "complete":
            write(run, "model/groundray.json")
            run.write_sealed("result.json", {})
        if name != "active":
            attempt.heartbeat("grounding", 1, ended="stopped")
    write(storage, "notes.txt", "data/train/dataset.json", "data/train/shard-00000.parquet")
    write(storage, ".out.writing-0123456789ab/new/a", ".writing/out-0123456789ab/new/a")
    alive = storage / (".alive.writing-0123456789ab" if storage.local else ".writing/alive-0123456789ab")
    with owned(alive.make()):
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 3 * DAYS)
        (storage / "active/attempts").make().write_json("0002-00000000.json", {"began": time.time()})
        items = cleaned(storage, "--yes")
        kept = {path for path, item in items.items() if item["kept"]}
        deleted = {path for path, item in items.items() if item["deleted"]}
    old = "checkpoints/grounding-00009-000000-a0000-01234567"
    assert {path for path in deleted if path.startswith("active")} == {"active/index/0123456789abcdef"}
    assert {path for path in deleted if path.startswith("killed")} == {
        f"killed/{old}",
        "killed/stacks",
        "killed/index/0123456789abcdef",
    }
    assert {path.partition("-a0001")[0] for path in deleted if path.startswith("complete")} == {
        f"complete/{old}",
        "complete/checkpoints/grounding-00001-000000",
        "complete/ray",
        "complete/stacks",
        "complete/index/0123456789abcdef",
    }
    assert {"notes.txt", "data/train", "active", "killed", "complete"} <= kept
    assert any("alive" in path for path in kept)
    assert any("out" in path for path in deleted)
    assert storage.exists("complete/model/groundray.json")
    for name in ("active", "killed", "complete"):
        assert len((storage / name / "history").files()) == 2
        assert (storage / name / "index").files() == []
    assert storage.exists("data/train/shard-00000.parquet")


def test_kinds_and_folders_are_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Folder.at(tmp_path / "runs").make()
    write(runs, ".features/0123456789abcdef/part-00000-000.parquet", "0.json.0123abcd.writing")
    age(tmp_path / "runs")
    assert cleaned(runs.path, "--only", "temporary", "--yes").keys() == {"0.json.0123abcd.writing"}
    assert runs.files() == [".features/0123456789abcdef/part-00000-000.parquet"]
    assert clean.main([f"{tmp_path}/none"]) == 2
    assert f"{tmp_path}/none" in capsys.readouterr().err
    assert clean.main([runs.path, "--idle-hours", "-1"]) == 2
    assert "--idle-hours: expected at least 0" in capsys.readouterr().err
    (tmp_path / "cache" / "groundray" / "embeddings").mkdir(parents=True)
    (tmp_path / "cache" / "groundray" / "embeddings" / "1.safetensors").write_bytes(b"x")
    models = Folder.at(tmp_path / "cache" / "groundray" / "models").make()
    write(models, "0123456789abcdef/groundray.json")
    write(runs, ".models/0123456789abcdef/groundray.json")
    age(tmp_path / "cache")
    write(models, "another/groundray.json")  # just downloaded
    (tmp_path / "tmp" / "groundray-stacks-1.txt").write_bytes(b"x")
    age(tmp_path / "tmp")
    kinds = [item["kind"] for item in cleaned(runs.path, "--yes").values()]
    assert sorted(kinds) == ["features", "models", "stacks"]
    assert (tmp_path / "cache" / "groundray" / "embeddings").exists()  # all folders share it
    found = cleaned(runs.path, "--cache", f"{tmp_path}/cache/groundray", "--yes").values()
    assert sorted((item["kind"], item["deleted"]) for item in found) == [
        ("models", False),
        ("models", False),
        ("vectors", True),
    ]
    age(tmp_path / "cache")
    cleaned(runs.path, "--cache", f"{tmp_path}/cache/groundray", "--yes")
    assert models.files() == []
    assert runs.files() == [".models/0123456789abcdef/groundray.json"]
    assert not list((tmp_path / "tmp").iterdir())
    assert not (tmp_path / "cache" / "groundray" / "embeddings").exists()
    assert json.loads((tmp_path / "items" / "items.json").read_text())


@pytest.mark.parametrize("at", ["", "project/"])
def test_what_is_no_run_is_kept(tmp_path: Path, at: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder.at(tmp_path / "mine").make()
    names = ("config.yaml", "stacks/a", "not_finite/a", "index/a/b", "ray/a", "attempts/notes.json", "essay.writing")
    write(folder, *(f"{at}{name}" for name in names))
    age(tmp_path / "mine")
    assert not any(item["deleted"] for item in cleaned(folder.path, "--yes").values())
    assert folder.files() == sorted(f"{at}{name}" for name in names)
    capsys.readouterr()
    assert clean.main([folder.path]) == 0
    assert capsys.readouterr().out.endswith(", 0 B may go\n")


def test_a_run_of_another_version_is_kept_and_spoils_only_itself(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "runs")
    write(Folder.at(tmp_path / "runs"), ".features/0123456789abcdef/part-00000-000.parquet")
    age(tmp_path / "runs")
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    items = cleaned(tmp_path / "runs", "--only", "checkpoints", "state", "features", "--idle-hours", "0").values()
    kept = {item["kept"] for item in items if item["kind"] == "checkpoints"}
    assert kept == {"of another version of groundray"}
    assert [item["kept"] for item in items if item["kind"] == "features"]
