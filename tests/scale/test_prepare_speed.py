"""Preparation of tar files costs little more than to read and check them, and two processes add little to it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundray.benchmarks.measure import cpu_seconds
from groundray.data import part_processes
from groundray.data.parts import PartTask
from groundray.data.schema import ROW_GROUP_BYTES
from groundray.data.sources.webdataset import TarFile, TarPart
from groundray.storage.folder import Folder

IMAGES = 2000  # of a tar file
TARS = 12


def photo(draw: np.random.Generator, side: int) -> bytes:
    """Return a JPEG of shapes and some noise, about as large as one of a photo."""
    shapes = Image.fromarray(draw.integers(0, 255, (8, 10, 3), np.uint8)).resize((side * 5 // 4, side))
    noise = draw.normal(0, 6, (side, side * 5 // 4, 3))
    out = io.BytesIO()
    Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


@pytest.fixture
def tar(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A tar file of images of a number of pixels a side, as img2dataset writes them."""
    draw = np.random.default_rng(0)
    photos = [photo(draw, request.param) for _ in range(50)]
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number in range(IMAGES):
            caption = f"a photo with the number {number}".encode()
            for end, content in (("jpg", photos[number % 50]), ("json", b'{"key": 1}' * 20), ("txt", caption)):
                member = tarfile.TarInfo(f"{number:09d}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return tmp_path / "0.tar"


def read_and_check(file: Path) -> int:
    """Read and check a tar file as a plain loop does: members, captions, and whole pictures. Return its samples."""
    captions, sizes = {}, {}
    with tarfile.open(file) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            content = stream.read() if stream else b""
            key, _, end = member.name.rpartition(".")
            if end == "jpg":
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
                    sizes[key] = image.size
            elif end == "txt":
                captions[key] = " ".join(content.decode().split())
    return len(sizes.keys() & captions.keys())


def tasks(files: list[Path], out: Path) -> Iterator[PartTask]:
    new, records = (Folder.at(out / name).make() for name in ("new", "records"))
    for number, file in enumerate(files):
        part = TarPart((TarFile(str(file), f"{number:05d}"),))
        name = f"shard-{number:05d}-{{:03d}}.parquet"
        yield PartTask(part, number, new, records, name, "captions", {}, ROW_GROUP_BYTES)


def least(out: Path, times: int, *works: Callable[[], object]) -> list[float]:
    """Return the CPU seconds that the quickest of some calls takes, of each of works that take turns."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(times):
        for work, taken in zip(works, seconds, strict=True):
            shutil.rmtree(out, ignore_errors=True)
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
    return [min(taken) for taken in seconds]


@pytest.mark.slow
@pytest.mark.parametrize("tar", [64, 256], indirect=True)
def test_tars_are_prepared_almost_as_fast_as_they_are_read(tar: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert read_and_check(tar) == IMAGES

    def write() -> None:
        for task in tasks([tar], out):
            task.write()

    plain, prepared = least(out, 5, lambda: read_and_check(tar), write)
    kb = tar.stat().st_size / IMAGES / 1000
    print(f"{kb:.0f} kB a sample: {plain / IMAGES * 1e6:.0f} us to read, {prepared / IMAGES * 1e6:.0f} us to prepare")
    assert plain / prepared > 0.9  # 1.09 and .97 on idle cores, .87 beside other work


@pytest.mark.slow
@pytest.mark.parametrize("tar", [256], indirect=True)
def test_two_processes_share_the_work_and_add_little_to_it(tar: Path, tmp_path: Path) -> None:
    """In CPU time, which hardly depends on what else the machine does: two idle cores take half of it.

    That both work at the same time is in `tests/data/test_part_processes.py`.
    """
    out, tars = tmp_path / "out", [tar]
    for number in range(1, TARS):
        tars.append(tmp_path / f"{number}.tar")
        tars[-1].hardlink_to(tar)

    def write(workers: int) -> dict[int, float]:
        """Return the CPU seconds of this process and of those that it starts, when the last part is whole."""
        shutil.rmtree(out, ignore_errors=True)
        before, after = cpu_seconds(), dict[int, float]()

        def tell(_: int, parts: int) -> None:
            if parts:
                after.update(cpu_seconds())

        part_processes.write_parts(tasks(tars, out), workers, tell)
        return {process: seconds - before.get(process, 0) for process, seconds in after.items()}

    one, two = write(1), write(2)
    shares = sorted(seconds for process, seconds in two.items() if process != os.getpid())[-2:]
    alone, both = one[os.getpid()], sum(two.values())
    print(
        f"{TARS * IMAGES:,} images: {alone:.1f} s of CPU time in one process, {both:.1f} s with two, of which they "
        f"take {shares[0]:.1f} and {shares[1]:.1f}: {2 * alone / both:.2f} times the speed on two cores"
    )
    assert 2 * alone / both > 1.5  # their start too; 1.66 beside other work
    assert shares[0] > shares[1] / 2
