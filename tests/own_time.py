"""Gives a module a clock of a test's. `module.time` is the whole process's: other threads sleep and wait by it too."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def give(patches: pytest.MonkeyPatch, module: ModuleType, **functions: Callable[..., Any]) -> None:
    """Replace functions of `time`, such as `sleep`, as a module that imports `time` sees them."""
    patches.setattr(module, "time", SimpleNamespace(**{**vars(time), **functions}))
