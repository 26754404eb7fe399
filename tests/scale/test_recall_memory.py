"""Ranks of a large pool take the memory that is stated, and not that of its similarity matrix."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from groundray.loss.match_map import SIZES

RANKS = """
import json, pathlib, sys, time
import torch
from groundray.stage.recall import matched_ranks

torch.set_num_threads(1)
images, captions, positions, dim = map(int, sys.argv[1:])
generator = torch.Generator().manual_seed(0)
V = torch.randn(images, positions, dim, generator=generator)
image_of = torch.arange(captions) % images  # an image's captions are far apart
W = V[image_of, :3].mul_(2) + torch.randn(captions, min(3, positions), dim, generator=generator)
valid = torch.ones(W.shape[:2], dtype=torch.bool)

def ranks(images, captions):
    return matched_ranks(V[:images].split(45), W[:captions].split(45), valid[:captions].split(45), "dot",
                         torch.device("cpu"), image_of[:captions])

def memory(name):
    (line,) = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024

ranks(9, 9)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before, began = memory("VmRSS"), time.process_time()
found = ranks(images, captions)
seconds = time.process_time() - began
recall = [(one <= 10).double().mean().item() for one in found]
print(json.dumps({"peak": memory("VmHWM") - before, "seconds": seconds, "recall": recall}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "dim"), [(4, 16), (1, 256)])
def test_memory_of_a_large_pool_is_bounded(positions: int, dim: int) -> None:
    """5,000 images and 25,000 captions, whose similarity matrix has 500 MB."""
    numbers = map(str, (5_000, 25_000, positions, dim))
    run = subprocess.run([sys.executable, "-c", RANKS, *numbers], check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(run.stdout)
    print(f"{positions} positions of {dim}: peak {found['peak'] / 1e6:.0f} MB, {found['seconds']:.1f} s of CPU time")
    bound = 4 * (4 * SIZES["cpu"].rows + 8 * SIZES["cpu"].tile) + 150 * 25_000
    assert bound < 51e6
    assert found["peak"] < bound
    assert all(0.01 < recall <= 1 for recall in found["recall"])
