"""Marks cases of a test: of many that show the same, `make test` runs a few and `make thorough` the others."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet


def thorough(*values: object) -> ParameterSet:
    """Return a case that `make thorough` runs."""
    return pytest.param(*values, marks=pytest.mark.thorough)
