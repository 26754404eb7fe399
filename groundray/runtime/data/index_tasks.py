"""The index of a pool of images, made in one pass by an actor pool of the whole cluster."""

from __future__ import annotations

from collections.abc import Iterator

from groundray.image_search.index import IndexParts, finish, make
from groundray.image_search.towers import Towers
from groundray.runtime.data.derived_tasks import make_parts


def make_index(one: IndexParts, towers: Towers, use_gpu: bool = False) -> Iterator[int]:
    """Make what is missing of an index; how many images are done, a part or a few at a time.

    Args:
        use_gpu: an actor has a GPU, where the cluster has any.

    Raises:
        ValueError: there is no room for it, or an image cannot be read; the message names it.
    """
    one.check_room()
    for _, rows in make_parts({"index": one}, make, towers, use_gpu):
        yield rows
    finish(one)
