"""Relative paths in a Ray job start from the home folder, not from the copy that the job runs in."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from groundray import train
from groundray.cli.workdir import COPIES, HOME, go_home
from groundray.config import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory like the one that Ray makes for a job."""
    folder = tmp_path / "session" / "runtime_resources" / COPIES / "_ray_pkg_0123456789abcdef"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv(HOME, raising=False)
    return folder


def test_outside_a_job_the_working_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(HOME, str(ROOT))
    lines: list[str] = []
    go_home(lines.append)
    assert Path.cwd() == tmp_path
    assert not lines


@pytest.mark.usefixtures("copy")
def test_home_is_the_folder_in_groundray_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, str(tmp_path))
    lines: list[str] = []
    go_home(lines.append)
    assert Path.cwd() == tmp_path
    assert lines == [f"job  relative paths start from {tmp_path}"]


@pytest.mark.usefixtures("copy")
def test_home_defaults_to_the_editable_install() -> None:
    go_home(lambda line: None)
    assert Path.cwd() == ROOT


@pytest.mark.parametrize("given", ["data", "/there/is/no/such/folder", None])
def test_a_job_without_a_home_fails_and_names_the_variable(
    copy: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distributions", lambda **_: [])  # groundray comes from the copy alone
    if given:
        monkeypatch.setenv(HOME, given)
    with pytest.raises(SettingsError, match=rf"expected {HOME} to name a folder .* got '{given or 'nothing'}'"):
        go_home(lambda line: None)
    assert Path.cwd() == copy


def test_settings_come_from_the_copy_and_runs_go_to_home(
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
