"""Profiles a few steps of a stage with torch's profiler.

RUN/profile/grounding.trace.json.gz    a trace, for https://ui.perfetto.dev
RUN/profile/grounding.memory.pickle    on a GPU, a history of its memory, for https://pytorch.org/memory_viz
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from groundray.data.stream import Step
from groundray.storage.folder import Folder
from groundray.training.layout import PROFILE

FIRST_FEW = 3  # steps that are not profiled: they load libraries and fill caches
TRACE = ".trace.json.gz"
MEMORY_EVENTS = 200_000


def profiled(steps: Iterator[Step], run: Folder, stage: str, device: str, count: int) -> Iterator[Step]:
    """Yield the steps. `count` of them are profiled, with the caller's work on them, after the first few.

    Args:
        run: the folder of the run.
        count: number of steps; 0 profiles none. There are fewer if the stage ends before.
    """
    with contextlib.ExitStack() as recording:
        for number, step in enumerate(steps):
            if count and number == FIRST_FEW:
                recording.enter_context(_recorded(run, stage, device))
            yield step
            if number == FIRST_FEW + count - 1:
                recording.close()


@contextlib.contextmanager
def _recorded(run: Folder, stage: str, device: str) -> Iterator[None]:
    """Write a trace of what happens inside the context, and on a GPU a history of its memory."""
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with tempfile.TemporaryDirectory(prefix="groundray-profile-") as local:
        try:
            with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
                yield
            profiler.export_chrome_trace(f"{local}/{stage}{TRACE}")
            if on_gpu:
                torch.cuda.memory._dump_snapshot(f"{local}/{stage}.memory.pickle")
        finally:
            if on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)
        for file in Path(local).iterdir():
            (run / PROFILE).make().write_bytes(file.name, file.read_bytes())
