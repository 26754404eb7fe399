"""Makes the parts of the index of a pool of images, and of its position features, on the whole cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundray.data.derived import DerivedDataset, check_room, finalize
from groundray.image_search.explain import Matcher
from groundray.image_search.index import IndexEncoder
from groundray.image_search.positions import PositionEncoder, check_positions_room
from groundray.image_search.towers import Towers
from groundray.runtime.data.derived_tasks import MakeEncoder, make_on_cluster


def make_index(spec: DerivedDataset, towers: Towers, use_gpu: bool = False) -> Iterator[int]:
    """Make the missing parts of an index and finalize it. Yields the number of images of each finished task.

    Args:
        use_gpu: give each actor a GPU, if the cluster has any.

    Raises:
        ValueError: the disk has no room, or an image cannot be decoded; the message names it.
    """
    check_room(spec)
    images = str(spec.source.folder)
    yield from _make(spec, towers, lambda model, device: IndexEncoder(model, images), use_gpu)


def make_position_features(spec: DerivedDataset, matcher: Matcher, use_gpu: bool = False) -> Iterator[int]:
    """Make the missing parts of position features and finalize them, as `make_index` does an index."""
    check_positions_room(spec)
    images = str(spec.source.folder)
    yield from _make(spec, matcher, lambda model, device: PositionEncoder(model, images), use_gpu)


def _make(spec: DerivedDataset, model: Any, make_encoder: MakeEncoder, use_gpu: bool) -> Iterator[int]:
    for _, rows in make_on_cluster({"index": (spec, make_encoder)}, model, use_gpu):
        yield rows
    finalize(spec)
