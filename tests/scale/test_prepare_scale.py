"""Preparation of many tiny images: memory does not grow with their number, and kills change no byte."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from groundray.data.schema import Dataset

MANY = 100_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100,000 images of 24 pixels a side with five captions each, in COCO's layout; and the first tenth of them."""
    root = tmp_path_factory.mktemp("many")
    pictures = []
    for _ in range(50):
        out = io.BytesIO()
        Image.effect_noise((24, 24), 80).save(out, "JPEG")
        pictures.append(out.getvalue())
    for count in (MANY // 10, MANY):
        folder = root / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(pictures[number % 50] if number % 1000 else b"no picture")
        captions = [
            {"id": number, "image_id": number // 5, "caption": f"caption {number} of an image with some words"}
            for number in range(5 * count)
        ]
        images = [{"id": number, "file_name": f"{number}.jpg", "license": 1} for number in range(count)]
        (root / f"{count}.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return root


def command(root: Path, count: int, out: Path) -> list[str]:
    words = ["coco", "--images", f"{root}/{count}", "--captions", f"{root}/{count}.json", "--out", str(out)]
    return [sys.executable, "-m", "groundray.prepare", *words]


def start(root: Path, count: int, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(root, count, out), start_new_session=True)


PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak(words: list[str]) -> float:
    """Run a command, and return the memory of the largest of its processes, in MB.

    A small process starts it: the peak of a new process is at first that of the one that it was copied from.
    """
    run = subprocess.run([sys.executable, "-c", PEAK, *words], check=True, stdout=subprocess.PIPE, text=True)
    return int(run.stdout) / 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(root: Path, tmp_path: Path) -> None:
    few = peak(command(root, MANY // 10, tmp_path / "few"))
    many = peak(command(root, MANY, tmp_path / "many"))
    assert Dataset.open(str(tmp_path / "many")).rows == MANY - MANY // 1000
    print(f"peak {few:.0f} MB for {MANY // 10:,} images, {many:.0f} MB for {MANY:,}")
    assert many < few + 60  # names in a folder, and pages of the table


@pytest.mark.slow
def test_kills_at_random_times_change_no_byte(root: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    assert start(root, MANY, tmp_path / "expected").wait() == 0
    seconds = time.monotonic() - started
    chance = random.Random(0)
    kills = 0
    while True:
        process = start(root, MANY, tmp_path / "killed")
        try:
            assert process.wait(chance.uniform(0.3, 0.8) * seconds if kills < 5 else None) == 0
            break
        except subprocess.TimeoutExpired:
            kills += 1
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert kills >= 1
    made, expected = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("killed", "expected")
    )
    assert made == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "killed"]
