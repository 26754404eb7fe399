"""Relative paths in a Ray job: those of a home folder, not of the copy that the job runs in."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from groundray import train
from groundray.cli.workdir import COPIES, HOME, go_home
from groundray.config import SettingsError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, such as Ray makes it for a job."""
    folder = tmp_path / "session" / "runtime_resources" / COPIES / "_ray_pkg_0123456789abcdef"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv(HOME, raising=False)
    return folder


def test_whoever_is_in_no_job_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME, str(ROOT))
    told: list[str] = []
    go_home(told.append)
    assert Path.cwd() == tmp_path
    assert not told


@pytest.mark.usefixtures("copy")
def test_home_is_the_folder_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, str(tmp_path))
    told: list[str] = []
    go_home(told.append)
    assert Path.cwd() == tmp_path
    assert told == [f"job  relative paths are those of {tmp_path}"]


@pytest.mark.usefixtures("copy")
def test_home_is_else_the_folder_of_make_setup() -> None:
    go_home(lambda line: None)
    assert Path.cwd() == ROOT


@pytest.mark.parametrize("given", ["data", "/there/is/no/such/folder", None])
def test_without_a_home_a_job_ends_and_says_how_to_give_it_one(
    copy: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda **_: [])  # groundray comes from the copy alone
    if given:
        monkeypatch.setenv(HOME, given)
    with pytest.raises(SettingsError, match=rf"expected {HOME} to name a folder .* got '{given or 'nothing'}'"):
        go_home(lambda line: None)
    assert Path.cwd() == copy


def test_settings_come_from_the_copy_and_runs_go_home(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME, str(tmp_path))
    (copy / "mine.yaml").write_text(
        "run: {name: mine}\nstages: [language]\nmodel: {language: {name: tiny, weights: none}}\n"
        "language: {train: data/train, val: data/val, batch_size: 8}\n"
    )
    assert train.main(["--config", "mine.yaml", "--dry-run"]) == 2  # there are no data
    assert f"run       {tmp_path}/runs/mine\n" in capsys.readouterr().out
    monkeypatch.chdir(copy)
    assert train.main(["--config", "mine.yaml", "--print-config"]) == 0
    assert capsys.readouterr().err.count("relative paths") == 0
