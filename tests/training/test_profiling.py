"""Profiles of training steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from groundray.data.stream import Step
from groundray.storage.folder import Folder
from groundray.training.profiling import FIRST_FEW, profiled


def trace_of(tmp_path: Path, steps: int, count: int) -> list[str]:
    """Return the operations in the profile of a training of some steps, each a product."""
    given = [Step(0, number, False, ()) for number in range(steps)]
    seen = []
    for step in profiled(iter(given), Folder.at(str(tmp_path)), "grounding", "cpu", count):
        torch.ones(3, 3).mm(torch.ones(3, 3))
        seen.append(step)
    assert seen == given
    file = tmp_path / "profile" / "grounding.trace.json.gz"
    return [event["name"] for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]


@pytest.mark.parametrize("steps", [FIRST_FEW + 2, FIRST_FEW + 9])
def test_some_steps_after_the_first_few_are_traced(steps: int, tmp_path: Path) -> None:
    assert trace_of(tmp_path, steps, count=2).count("aten::mm") == 2


def test_a_stage_that_ends_before_is_traced_as_far_as_it_goes(tmp_path: Path) -> None:
    assert trace_of(tmp_path, FIRST_FEW + 1, count=5).count("aten::mm") == 1


def test_nothing_is_written_without_a_profile(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trace_of(tmp_path, FIRST_FEW + 3, count=0)
