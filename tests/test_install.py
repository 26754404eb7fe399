"""groundray from its wheel, as `pip install groundray` puts it in an environment, and what `make clean` leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough  # every other test runs the same modules from the checkout

CHECKOUT = Path(__file__).parent.parent


def sources() -> list[str]:
    """Returns the files of the checkout that git tracks, or that are new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in found if (CHECKOUT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of the sources: a build writes folders beside them."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, copy / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (file,) = out.glob("groundray-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of an environment with the wheel's groundray and this environment's other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # not by a .pth file: this environment's own would be read too, and put the checkout on the path
    (packages / "sitecustomize.py").write_text(f"import sys\nsys.path.append({sysconfig.get_path('purelib')!r})\n")
    yield folder
    shutil.rmtree(folder)


def run(installed: Path, folder: Path, *words: str) -> str:
    """Returns what `python WORDS` prints in a folder that has nothing of the checkout."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GROUNDRAY_HOME")}
    done = subprocess.run(
        [str(installed / "bin/python"), *words], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if name.startswith("groundray/")}
        (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
        (commands,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert files == {name for name in sources() if name.startswith("groundray/")}
    assert {"groundray/config/presets/demo.yaml", "groundray/image_search/http/page/index.html"} <= files
    assert "groundray = groundray.cli.console:main" in commands
    for extra in ("pretrained", "search", "models", "trackers", "postgres"):
        assert f"Provides-Extra: {extra}\n" in metadata


@pytest.mark.timeout(900)  # four processes import everything, one after the other
def test_installed_groundray_trains(installed: Path, tmp_path: Path) -> None:
    """With the presets of the wheel."""
    where = run(installed, tmp_path, "-c", "import groundray; print(groundray.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    run(
        installed,
        tmp_path,
        "-m",
        "groundray.prepare",
        "scenes",
        "--num-scenes",
        "80",
        "--num-val",
        "20",
        "--out",
        "data/scenes",
    )
    small = [
        "--scaling.num_workers=0",
        "--tracking.enabled=false",
        "--analysis.enabled=false",
        "--visual.epochs=1",
        "--grounding.epochs=1",
    ]
    run(installed, tmp_path, "-m", "groundray.train", "--config=demo", "--stages=visual,grounding", *small)
    assert set(json.loads((tmp_path / "runs/demo/result.json").read_text())["stages"]) == {"visual", "grounding"}


def test_make_clean_leaves_nothing_that_git_ignores(tmp_path: Path) -> None:
    for name in sources():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, tmp_path / name)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    for line in (CHECKOUT / ".gitignore").read_text().splitlines():
        if line and not line.startswith("#"):
            anywhere = not line.startswith("/") and line != ".venv/"
            for place in ("", "groundray", "tests/data", "docs") if anywhere else ("",):
                made = tmp_path / place / line.strip("/").replace("*", "1")
                made.mkdir(parents=True, exist_ok=True)
                (made / "file").write_text("made")
    ignored = ["git", "status", "--porcelain", "--ignored"]
    assert "!! .venv/" in subprocess.run(ignored, cwd=tmp_path, capture_output=True, text=True).stdout
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    found = subprocess.run(ignored, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in found if line.startswith("!!")] == []
    assert all((tmp_path / name).is_file() for name in sources())
