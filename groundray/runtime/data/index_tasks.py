"""Makes the parts of the index of a pool of images with an actor pool on the whole cluster."""

from __future__ import annotations

from collections.abc import Iterator

from groundray.data.derived import DerivedDataset, check_room, finalize
from groundray.image_search.index import IndexEncoder
from groundray.image_search.towers import Towers
from groundray.runtime.data.derived_tasks import make_on_cluster


def make_index(spec: DerivedDataset, towers: Towers, use_gpu: bool = False) -> Iterator[int]:
    """Make the missing parts of an index and finalize it. Yields the number of images of each finished task.

    Args:
        use_gpu: give each actor a GPU, if the cluster has any.

    Raises:
        ValueError: the disk has no room, or an image cannot be decoded; the message names it.
    """
    check_room(spec)
    images = str(spec.source.folder)
    work = {"index": (spec, lambda model, device: IndexEncoder(model, images))}
    for _, rows in make_on_cluster(work, towers, use_gpu):
        yield rows
    finalize(spec)
