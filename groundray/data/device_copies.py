"""Copies of batches to the device that trains, made ahead of the step that uses them. JPEGs are decoded there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from groundray.data.ahead import one_ahead
from groundray.data.device_decoding import with_pixels
from groundray.data.stream import Step


def on_device(steps: Iterator[Step], device: str) -> Iterator[Step]:
    """Yield the steps with their tensors on a device; on a CPU, the steps as they are.

    For a GPU, a thread takes the next step and copies it into pinned memory, from where it is copied to the GPU on a
    stream of its own while the caller computes. The caller's stream waits for that copy; the host does not. At most two
    steps are on the GPU: the caller's, and the next one. Pinned memory is that of torch's caching allocator, which
    reuses a buffer once its copy is done.
    """
    if torch.device(device).type != "cuda":
        yield from steps
        return
    copies = torch.cuda.Stream(device)

    def copied() -> Iterator[tuple[Step, torch.cuda.Event]]:
        for step in steps:
            with torch.cuda.device(device), torch.cuda.stream(copies):
                placed, done = with_pixels(step.pinned(), device).to(device), torch.cuda.Event()
                done.record(copies)
            yield placed, done

    for step, done in one_ahead(copied(), "copies"):
        current = torch.cuda.current_stream(device)
        current.wait_event(done)
        step.record_stream(current)  # its memory is not given to a later copy before the caller's stream is past it
        yield step
