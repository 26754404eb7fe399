"""Private names of Ray: each exists in the installed Ray, and none stands outside of runtime/compat.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundray.runtime import compat
from groundray.runtime.compat import PRIVATE_NAMES, PrivateName

ROOT = Path(__file__).parents[2]
ATTRIBUTES = {name.rpartition(".")[2] for name in PRIVATE_NAMES if "." in name}


@pytest.mark.parametrize("name", PRIVATE_NAMES)
def test_installed_ray_has_private_name(name: str) -> None:
    compat.load(name)


@pytest.mark.parametrize(
    "path", ["ray.train.v2._internal.moved:Policy", "ray.train:ScalingConfig._gone", "ray.tune:ResultGrid._gone"]
)
def test_missing_name_is_named_with_the_supported_versions(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(PRIVATE_NAMES, "Missing", PrivateName(path, "test"))
    with pytest.raises(ImportError, match=rf"^Ray \S+ lacks {re.escape(path)}; groundray needs ray>=2\.60,<2\.61"):
        compat.Missing  # noqa: B018


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Unknown"):
        compat.Unknown  # noqa: B018


def test_pyproject_pins_the_supported_versions() -> None:
    (pin,) = re.findall(r'"ray\[[a-z,]+\]([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert pin == compat.RAY_VERSIONS


def private_names(source: str) -> Iterator[str]:
    """Private names of Ray in a module: imports, and attributes other than those of `self` and `cls`. A method that a
    subclass of ours overrides is in `PRIVATE_NAMES`, and may be defined and called through `super()`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                paths = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                paths = [f"{module}.{alias.name}" for alias in names]
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                continue
            case ast.Attribute(attr=attr) if attr in ATTRIBUTES:
                yield attr
                continue
            case ast.Attribute():
                paths = [ast.unparse(node)]
            case ast.Constant(value=str(text)):
                paths = [text] if re.fullmatch(r"ray(\.\w+)+", text) else []
            case _:
                continue
        yield from (path for path in paths if re.match(r"(ray|serve|tune)\.(\w+\.)*_(?!_)", path))


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.state",
        "from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError",
        "from ray.serve.context import _get_global_client",
        "ray._private.state.state",
        "grid._experiment_analysis.trials",
        "importlib.import_module('ray._common.constants')",
    ],
)
def test_scan_finds_private_names(source: str) -> None:
    assert list(private_names(source))


def test_no_private_name_outside_of_compat() -> None:
    found = {
        str(file.relative_to(ROOT)): names
        for file in sorted((ROOT / "groundray").rglob("*.py"))
        if file.name != "compat.py" and (names := list(private_names(file.read_text())))
    }
    assert found == {}
