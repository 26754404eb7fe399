"""A model and a pool of images at a command line: the options that name them, and their index, made where it is
missing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console

from groundray.cli.workdir import go_home
from groundray.storage.folder import Folder

if TYPE_CHECKING:
    from groundray.data.derived import DerivedDataset
    from groundray.image_search.towers import Towers


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `indexed` takes."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's model/ folder, or a URL of one")
    parser.add_argument("--images", required=True, metavar="SHARDS", help="folder or URL of shards with images")
    parser.add_argument("--index", metavar="DIR", help="where indexes are kept (default: index/ beside the model/)")
    parser.add_argument("--use-gpu", action="store_true", help="make a missing index on the cluster's GPUs")
    parser.add_argument("--verbose", action="store_true", help="with Ray's own logs")


def places_of(options: argparse.Namespace) -> dict[str, str | None]:
    """The paths and URLs among the options, by name; None where one was not given."""
    return {name: getattr(options, name, None) for name in ("checkpoint", "images", "index", "norms")}


def ready(options: argparse.Namespace, errors: Console) -> None:
    """Go to where relative paths are, and see that the stores answer which the options name.

    Raises:
        OSError: one does not, has no such bucket, or refuses the credentials.
    """
    go_home(errors.print)
    for place in places_of(options).values():
        if place:
            Folder.connect(place)


def indexed(options: argparse.Namespace, console: Console) -> tuple[Towers, DerivedDataset]:
    """A model and its index of some images, which is made on the connected cluster, or on one that is started for it.

    Raises:
        FileNotFoundError, ValueError: it is no model that can search, there are no such images, or no room.
    """
    from groundray.cli.preparation import progress
    from groundray.data.derived import count_missing_rows, open_derived
    from groundray.image_search.index import index_spec, open_pool, place_beside
    from groundray.image_search.towers import Towers
    from groundray.runtime import cluster
    from groundray.storage.folder import format_bytes

    pool, towers = open_pool(options.images), Towers.load(options.checkpoint)
    spec = index_spec(towers, pool, options.index or place_beside(options.checkpoint))
    if open_derived(spec) is not None:
        return towers, spec
    started, missing = time.monotonic(), count_missing_rows(spec)
    console.print(
        f"index   {missing:,} of {pool.rows:,} images, about {format_bytes(spec.bytes)} all together, to {spec.folder}"
    )
    with cluster.connect(verbose=options.verbose):
        from groundray.runtime.data.index_tasks import make_index  # brings Ray Data, which the cluster has made quiet

        for _ in progress(_each(make_index(spec, towers, options.use_gpu)), "index", console, missing):
            pass
    console.print(f"index   is there after {time.monotonic() - started:.0f} s")
    return towers, spec


def _each(done: Iterable[int]) -> Iterable[None]:
    """One item for each of the images that are done together."""
    for rows in done:
        yield from [None] * rows
