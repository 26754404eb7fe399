"""Which of groundray's functions some work calls, and which of those the code of a cache's key does not name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

import groundray
from groundray import arithmetic, device_copy
from groundray.data import footers, row_groups, schema, shards
from groundray.data.derived import DerivedDataset, Encoder
from groundray.data.row_groups import read_group
from groundray.model import grounded
from groundray.storage import cache_key, folder, seals

PACKAGE = str(Path(groundray.__file__).parent)
# in each key under another name, or without numbers of its own: files are read by their checksums
ELSEWHERE = (arithmetic, device_copy, grounded, row_groups, footers, schema, shards, folder, seals)
Code = list[ModuleType | Callable[..., Any]]


def named_code(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Code:
    """Return the code of the keys that some modules make from now on."""
    found: Code = [*ELSEWHERE]

    def noted(inputs: Any, code: Code, device: str, stored: str) -> str:
        found.extend(code)
        return cache_key.cache_key(inputs, code, device, stored)

    for module in modules:
        monkeypatch.setattr(module, "cache_key", noted)
    return found


def encoding(spec: DerivedDataset, encoder: Encoder[Any]) -> Callable[[], object]:
    """Return the work that makes some rows of a derived data set."""
    table = read_group(spec.source, 0, encoder.columns).slice(0, 4)
    return lambda: encoder.encode(encoder.decode(table))


def called(work: Callable[[], object]) -> set[CodeType]:
    """Return the code of groundray that some work runs in this thread."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found


def unnamed(found: set[CodeType], named: Sequence[ModuleType | Callable[..., Any]]) -> set[str]:
    """Return the names of functions that lie in none of some modules, classes and functions."""
    places = [_place(part) for part in named]
    return {
        f"{Path(code.co_filename).relative_to(PACKAGE)}:{code.co_qualname}"
        for code in found
        if not any(code.co_filename == file and code.co_firstlineno in lines for file, lines in places)
    }


def _place(part: Any) -> tuple[str, range]:
    """Return the file and the lines of a module, a class or a function."""
    part = inspect.unwrap(part)  # of the checks of shapes
    file = str(inspect.getsourcefile(part))
    if inspect.ismodule(part):
        return file, range(10**6)
    lines, first = inspect.getsourcelines(part)
    return file, range(first, first + len(lines))
