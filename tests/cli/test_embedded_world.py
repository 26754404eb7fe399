"""A run draws the demo's data where they are missing: once, whole, and never in place of a user's own."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import servers
from rich.console import Console

from groundray import config, train
from groundray.cli import preparation
from groundray.cli.embedded_world import DATA_SETS, missing_world, with_embedded_world
from groundray.config import Settings, SettingsError
from groundray.config.embedded_world import SHARED_WORLD, WORLD
from groundray.data.schema import Dataset
from groundray.data.sources.scenes import Scenes
from groundray.storage import made_once
from groundray.storage.folder import Folder

SMALL = """
import sys
from groundray.data.sources.scenes import Scenes

Scenes._size = property(lambda self: {"num_scenes": 8, "num_val": 4, "seed": 0, "objects_per_noun": 1})
"""
DRAWS = SMALL + "from groundray import train\nsys.exit(train.main(sys.argv[1:]))\n"
# ends as a process does that is killed while it moves the first data set's parts together
KILLED = (
    SMALL
    + """
import os, signal
from groundray.cli import preparation

preparation.write_index = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
from groundray import train
train.main(sys.argv[1:])
"""
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty working directory, no cluster, and a world of a few scenes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(Scenes, "_size", {"num_scenes": 8, "num_val": 4, "seed": 0, "objects_per_noun": 1})
    monkeypatch.setattr(made_once, "WAIT_SECONDS", 0.05)


def demo(*overrides: str) -> Settings:
    return config.load("demo", ["--scaling.num_workers=0", *overrides])


def drawn(settings: Settings) -> tuple[Settings, list[str]]:
    """Return the settings with the world, and the lines that were printed but those of progress."""
    console = Console(record=True, width=400, file=io.StringIO())
    found = with_embedded_world(settings, console)
    return found, [line for line in console.export_text().splitlines() if line.startswith("data  ")]


def is_whole(world: Path | str) -> bool:
    return {Dataset.open(f"{world}/{name}").rows > 0 for name in DATA_SETS} == {True} and Folder.at(world).exists(
        "source/tokenizer/tokenizer.json"
    )


def test_the_world_is_drawn_once_with_one_line_before_it(tmp_path: Path) -> None:
    settings, lines = drawn(demo())
    assert settings == demo()
    assert is_whole(WORLD)
    assert len(lines) == 1
    assert lines[0].startswith(f"data  {tmp_path}/{WORLD} is missing: drawing the embedded world there, 4,200 scenes")
    assert sorted(path.name for path in Path("data").iterdir()) == ["scenes"]
    before = {file: file.stat().st_mtime_ns for file in Path(WORLD).rglob("*")}
    assert drawn(demo()) == (demo(), [])
    assert {file: file.stat().st_mtime_ns for file in Path(WORLD).rglob("*")} == before


def test_of_several_threads_one_draws_and_the_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    times, prepare, printed = [], preparation.prepare, list[list[str]]()

    def counted(*arguments: object, **options: object) -> None:
        times.append(1)
        time.sleep(1)
        prepare(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "prepare", counted)
    threads = [threading.Thread(target=lambda: printed.append(drawn(demo())[1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times == [1]
    lines = sorted(line for each in printed for line in each)
    assert [line.partition(str(Path.cwd()))[0] for line in lines] == [
        "data  ",
        *["data  waiting for the process that makes "] * 2,
    ]
    assert is_whole(WORLD)
    assert [path.name for path in Path("data").iterdir()] == ["scenes"]


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, "--scaling.num_workers=0", "--tracking.enabled=false", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.thorough  # each process imports everything
def test_a_process_that_is_killed_while_it_draws_leaves_nothing_that_is_taken_for_whole() -> None:
    assert run(KILLED).returncode == -signal.SIGKILL
    assert not Path(WORLD).exists()
    quick = ("--stages=language", "--language.epochs=1", "--language.batch_size=8", "--analysis.enabled=false")
    ended = run(DRAWS, *quick)
    assert ended.returncode == 0, ended.stderr
    assert "drawing the embedded world" in ended.stdout
    assert is_whole(WORLD)
    assert [path.name for path in Path("data").iterdir()] == [
        "scenes"
    ]  # no claim, and no rest of those that were killed


@pytest.mark.parametrize(
    "overrides",
    [("--grounding.train=mine/train",), ("--visual.val=data/scenes/mine",), ("--retrieval.train=s3://b/x",)],
    ids=["a folder", "a folder beside the world's", "a URL"],
)
def test_a_path_of_the_users_own_is_not_drawn(overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundray.training.preflight.check_storage", lambda _: None)  # asks the store
    monkeypatch.setattr(Dataset, "open", lambda path, *_: (_ for _ in ()).throw(FileNotFoundError(f"none at {path}")))
    name, _, path = overrides[0].removeprefix("--").partition("=")
    with pytest.raises(SettingsError, match=f"^{name}: none at {path}$"):
        drawn(demo(*overrides))
    assert not Path("data").exists()


def test_settings_that_name_no_part_of_it_draw_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    photos = config.load("photos", ["--stages=grounding", "--scaling.num_workers=0"])
    assert drawn(photos) == (photos, [])
    words = ["--stages=language", "--language.train=a", "--language.val=b", "--analysis.enabled=false"]
    assert missing_world(demo(*words, "--model.language.tokenizer=null")) is None
    assert train.main(["--config", "demo", *words, "--scaling.num_workers=0"]) == 2  # the tokenizer is the world's
    captured = capsys.readouterr()
    assert "language.train: expected shards at" in captured.err
    assert not Path("data").exists()


def test_what_lies_in_its_place_is_kept_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path(WORLD, "notes").mkdir(parents=True)
    assert drawn(demo()) == (demo(), [])
    assert train.main(["--scaling.num_workers=0", "--tracking.enabled=false"]) == 2
    assert WORLD in capsys.readouterr().err
    assert [path.name for path in Path(WORLD).iterdir()] == ["notes"]


def test_a_cluster_that_is_gone_is_named_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SettingsError, match="RAY_ADDRESS"):
        drawn(config.load("demo"))
    assert not Path("data").exists()


@pytest.mark.parametrize("place", ["data", WORLD])
def test_a_place_that_cannot_be_used_is_named(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, where a folder is expected."""
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).touch()
    for more in ([], ["--dry-run"]):
        assert train.main(["--scaling.num_workers=0", "--tracking.enabled=false", *more]) == 2
        shown = capsys.readouterr()
        assert str(Path(place).absolute()) in shown.out + shown.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--run.start_from=typo/model", "typo/model"),
        ("--stages=retrieval", "stage retrieval needs the head of stage"),
        ("--model.trunk.name=typo", "typo"),
    ],
)
def test_settings_that_cannot_be_used_are_named_before_anything_is_drawn(
    setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--dry-run"]):
        assert train.main(["--scaling.num_workers=0", "--tracking.enabled=false", setting, *more]) == 2
        shown = capsys.readouterr()
        assert message in shown.out + shown.err
    assert not Path("data").exists()


@pytest.mark.thorough
def test_on_a_cluster_it_is_where_all_machines_see_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = demo(f"--run.storage={tmp_path}/mnt")
    assert missing_world(shared) == Folder.at(WORLD)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert missing_world(demo()) == Folder.at(WORLD)  # runs are beside it
    assert missing_world(shared) == Folder.at(tmp_path / "mnt" / SHARED_WORLD)
    monkeypatch.setattr("groundray.runtime.train.launch.check_cluster", lambda _: None)
    settings, lines = drawn(shared)
    assert len(lines) == 1
    assert is_whole(tmp_path / "mnt" / SHARED_WORLD)
    assert not Path("data").exists()
    paths = {settings.stage(name).train for name in settings.stages}
    paths |= {settings.model.language.tokenizer, settings.analysis.norms}
    assert all(str(path).startswith(f"{tmp_path}/mnt/{SHARED_WORLD}/") for path in paths)
    assert settings.identity() == shared.identity()  # it resumes wherever the world was drawn
    assert drawn(shared) == (settings, [])

    Path(WORLD, "notes").mkdir(parents=True)
    here, lines = drawn(shared)  # what is in the working directory comes first, and other machines may not see it
    assert here == shared
    assert [line.split()[1] for line in lines] == [f"{tmp_path}/{WORLD}"]
    assert "every machine of the cluster must see" in lines[0]


@pytest.mark.thorough
def test_in_an_object_store_it_is_drawn_once(s3: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("groundray.runtime.train.launch.check_cluster", lambda _: None)
    settings, lines = drawn(demo(f"--run.storage={url}"))
    assert settings.stage("grounding").train == f"{url}/{SHARED_WORLD}/captions/train"
    assert len(lines) == 1
    assert is_whole(f"{url}/{SHARED_WORLD}")
    assert drawn(demo(f"--run.storage={url}")) == (settings, [])


@pytest.mark.parametrize("problem", ["", "--visual.train=mine"])
def test_a_dry_run_says_what_would_be_drawn_and_draws_nothing(problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry-run", "--scaling.num_workers=0", *([problem] if problem else [])]
    assert train.main(words) == (2 if problem else 0)
    shown = capsys.readouterr().out
    assert f"{WORLD} is missing: the run draws the embedded world there first" in shown
    assert ("problem   visual.train: expected shards at" in shown) == bool(problem)
    assert not Path("data").exists()


def test_an_interrupt_leaves_no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "prepare", interrupt)
    with pytest.raises(KeyboardInterrupt):
        drawn(demo())
    assert list(Path("data").iterdir()) == []
