"""Checks of image files in processes of this machine; `runtime/data/image_checks.py` does the same on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import joblib

from groundray.data.image_decoder import UnusableImage
from groundray.data.processes import process_pool
from groundray.data.sources.image_files import CheckedImage, check_image
from groundray.storage.folder import Folder

IMAGES_PER_TASK = 64
TASKS_PER_WORKER = 3  # submitted and not yet used: their images are in memory


def checked_images(
    folder: Folder, names: Sequence[Sequence[str]], workers: int | None = None
) -> Iterator[CheckedImage | UnusableImage]:
    """Yield each image of a folder in the order of `names`: its bytes, or why it cannot be used.

    At most `IMAGES_PER_TASK * TASKS_PER_WORKER * workers` images are in memory.

    Args:
        names: for each image, the names that its file may have.
        workers: number of processes; by default one for each core that this process may use.
    """
    tasks = [names[start : start + IMAGES_PER_TASK] for start in range(0, len(names), IMAGES_PER_TASK)]
    if len(tasks) < 2:  # not worth a process
        yield from _check(folder, names)
        return
    workers = min(workers or joblib.cpu_count(), len(tasks))
    pending: deque[Future[list[CheckedImage | UnusableImage]]] = deque()
    with process_pool(workers) as pool:
        for task in tasks:
            pending.append(pool.submit(_check, folder, task))
            if len(pending) == workers * TASKS_PER_WORKER:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _check(folder: Folder, names: Sequence[Sequence[str]]) -> list[CheckedImage | UnusableImage]:
    checked: list[CheckedImage | UnusableImage] = []
    for candidates in names:
        try:
            checked.append(check_image(folder, candidates))
        except UnusableImage as problem:
            checked.append(problem)
    return checked
