"""What set-up compiles: what groundray imports, and nothing that few runs need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ray

from groundray.cli import bytecode
from groundray.runtime import compat


def test_imports_are_found_wherever_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "import json, numpy.typing\nfrom groundray.config import load\n"
        "def later() -> None:\n    import mlflow\n    from transformers import BertModel\n"
    )
    assert bytecode.imported(tmp_path) == {"numpy.typing", "mlflow", "transformers:BertModel"}


def test_modules_of_a_run_are_among_them() -> None:
    found = bytecode.imported(bytecode.PACKAGE)
    assert {"torch", "ray.data:DataContext", "mlflow:MlflowClient"} <= found
    assert {bytecode.package(name) for name in found} >= bytecode.FIRST


def test_what_is_imported_is_compiled(tmp_path: Path) -> None:
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "lazy.py").write_text("")
    words = [sys.executable, "-c", "import sys; from groundray.cli import bytecode; sys.exit(bytecode.main())"]
    found = subprocess.run([*words, "heavy:lazy", "gone.entirely"], env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"})
    assert found.returncode == 0
    assert {file.name.partition(".")[0] for file in package.rglob("*.pyc")} == {"__init__", "lazy"}


def test_ray_has_the_folders_of_its_processes() -> None:
    assert all((Path(ray.__file__).parent / folder).is_dir() for folder in compat.PROCESS_FOLDERS)
