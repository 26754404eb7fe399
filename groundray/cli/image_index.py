"""A model and a pool of images on a command line: the options that name them, and the index of the images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

from groundray.cli.command import CHECKPOINT
from groundray.cli.progress import Progress
from groundray.storage.folder import Folder, format_bytes

if TYPE_CHECKING:
    from groundray.data.derived import DerivedDataset
    from groundray.data.schema import Dataset
    from groundray.image_search.explain import Matcher
    from groundray.image_search.towers import Towers

PATHS = ("checkpoint", "images", "index", "norms")
RERANK = 200  # as of a query
HERE = 1_000  # images at most that are encoded in this process without Ray, whose start takes longer
INTERRUPTED = "interrupted; the finished parts of the index are kept: rerun the same command to resume"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `open_index` takes."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help=f"{CHECKPOINT}; or a CLIP, SigLIP or ALIGN")
    parser.add_argument("--images", required=True, metavar="SHARDS", help="folder or URL of shards with images")
    parser.add_argument(
        "--index",
        metavar="DIR",
        help="folder or URL that holds indexes (default: index/ beside the model/ folder; of a model in MLflow, "
        "~/.cache/groundray/index)",
    )
    parser.add_argument(
        "--rerank",
        type=int,
        default=RERANK,
        metavar="N",
        help="number of the nearest images that the match map ranks again, if the model has the stage grounding; "
        f"0: none, and no position features are made (default: {RERANK})",
    )
    parser.set_defaults(on_this_machine=False)
    parser.add_argument("--use-gpu", action="store_true", help="build a missing index on the cluster's GPUs")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own logs")


def paths_of(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the paths and URLs among the options by name; None for those not given."""
    return {name: getattr(options, name, None) for name in PATHS}


def absolute_paths_of(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the same as absolute paths or URLs, which mean the same in another process's working directory. A name on
    a model hub stays as it is."""
    from groundray.model.two_towers import is_hub_name

    absolute = {name: path and str(Folder.at(path)) for name, path in paths_of(options).items()}
    return {**absolute, "checkpoint": options.checkpoint} if is_hub_name(options.checkpoint) else absolute


def locate_model(options: argparse.Namespace, console: Console) -> None:
    """Replace MLflow's name of a model among the options by the place of its files, and give it a folder for indexes.
    Changes nothing if the model is given as a path or URL.

    Raises:
        ValueError, FileNotFoundError, OSError: MLflow has no such model, or its files cannot be used.
    """
    from groundray.image_search.index import FOLDER
    from groundray.storage.user_cache import user_cache
    from groundray.tracking.model_uris import DOWNLOADS, locate

    located = locate(options.checkpoint, lambda line: console.print(line), user_cache(options.index) / DOWNLOADS)
    options.checkpoint, options.on_this_machine = located.place, bool(located.model and not options.index)
    if located.model:
        options.index = options.index or str(user_cache() / FOLDER)


def check_shared(options: argparse.Namespace) -> None:
    """Raise ValueError if the folder for indexes, and the model if it was downloaded, are on this machine alone, and
    the connected cluster has others."""
    from groundray.runtime.nodes import accepting_nodes

    if options.on_this_machine and (nodes := len(accepting_nodes())) > 1:
        raise ValueError(
            f"--index: expected a folder or URL that the {nodes} machines of the cluster share, got none: a model in "
            f"MLflow has its index, and its files if they are downloaded, in {options.index} on this one"
        )


def check_inputs(options: argparse.Namespace, console: Console) -> None:
    """Check the model, the images, the norms and `--rerank`, so that what cannot be used fails before Ray starts.
    Prints a line for each file beside the norms that is not read.

    Raises:
        FileNotFoundError, ValueError: one of them cannot be used.
    """
    from groundray.image_search import checkpoint, word_space
    from groundray.image_search.index import open_pool
    from groundray.image_search.query import check_rerank

    check_rerank(options.rerank)
    checkpoint.check_searchable(options.checkpoint)
    open_pool(options.images)
    if options.norms:
        for line in word_space.Words.of_norms(options.norms).passed_over:
            console.print(f"note  {line}")


def open_index(options: argparse.Namespace, console: Console) -> tuple[Towers, DerivedDataset]:
    """Return a model and its index of the images. Builds a missing index in this process if it is of few images, else
    on the connected cluster, or starts one, and prints how the images are searched.

    Raises:
        FileNotFoundError, ValueError: the model cannot search, there are no such images, or the disk is too small.
    """
    from groundray.data.derived import count_earlier_rows, count_missing_rows, damaged_parts, open_derived
    from groundray.image_search.checkpoint import open_towers
    from groundray.image_search.index import default_folder, find_index, open_pool
    from groundray.image_search.inverted_file import require_faiss
    from groundray.image_search.neighbours import make_missing_files
    from groundray.image_search.uses import mark

    pool, towers = open_pool(options.images), open_towers(options.checkpoint)
    require_faiss(pool.rows)
    device = "cuda" if options.use_gpu else "cpu"
    spec = find_index(towers, pool, options.index or default_folder(options.checkpoint), device)
    if open_derived(spec) is None:
        for line in damaged_parts(spec):
            console.print(line)
        missing, earlier = count_missing_rows(spec), count_earlier_rows(spec)
        kept = f" ({earlier:,} of them from an earlier index)" if earlier else ""
        console.print(
            f"index   {missing:,} of {pool.rows:,} images{kept}, {format_bytes(spec.bytes)} in total, to {spec.folder}"
        )
        _make("make_index", spec, towers, options, console)
    searched = make_missing_files(spec, lambda line: console.print(f"index   {line}"))
    console.print(f"index   {pool.rows:,} images in {spec.folder}, {searched}")
    mark([spec.folder])
    return towers, spec


def open_positions(
    options: argparse.Namespace, console: Console, towers: Towers, pool: Dataset
) -> tuple[Matcher, DerivedDataset] | None:
    """Return a model's matcher and its position features of the images, with which found images are ranked again; None
    with `--rerank 0` or if the model has no stage grounding. Makes missing features on the cluster, after a line that
    says their size.

    Args:
        pool: the images of the index, as it was opened: what is at `--images` may have been replaced since.

    Raises:
        ValueError: the disk is too small, or the images were replaced.
    """
    from groundray.data.derived import damaged_parts, open_derived
    from groundray.image_search.checkpoint import open_reranking_matcher
    from groundray.image_search.index import default_folder
    from groundray.image_search.positions import find_positions, make_positions_file, size_line
    from groundray.image_search.uses import mark

    matcher = open_reranking_matcher(options.checkpoint, towers) if options.rerank else None
    if matcher is None:
        return None
    folder = options.index or default_folder(options.checkpoint)
    device = "cuda" if options.use_gpu else "cpu"
    spec = find_positions(matcher, pool, folder, device)
    if open_derived(spec) is None:
        for line in damaged_parts(spec):
            console.print(line)
        console.print(f"index   {size_line(spec)}")
        _make("make_position_features", spec, matcher, options, console)
    make_positions_file(spec, lambda line: console.print(f"index   {line}"))
    mark([spec.folder])
    return matcher, spec


def _make(maker: str, spec: DerivedDataset, model: object, options: argparse.Namespace, console: Console) -> None:
    """Make the missing parts of a derived data set, and show how far it is: in this process if they are few and no
    cluster is named, else with a function of `index_tasks`."""
    from groundray.data.derived import count_missing_rows
    from groundray.runtime.ray_address import given_address

    started, missing = time.monotonic(), count_missing_rows(spec)
    here = missing <= HERE and given_address() is None and not options.use_gpu
    with Progress(console) as progress:
        done = 0
        for rows in (_made_here if here else _made_on_cluster)(maker, spec, model, options):
            done += rows
            progress.update("index", done, missing)
    console.print(f"index   done in {time.monotonic() - started:.0f} s")


def _made_here(maker: str, spec: DerivedDataset, model: Any, options: argparse.Namespace) -> Iterator[int]:
    """Make the missing parts in this process; yields the number of images of each task."""
    from groundray.image_search import index, positions

    makers = {"make_index": index.make_index, "make_position_features": positions.make_position_features}
    yield from makers[maker](spec, model)


def _made_on_cluster(maker: str, spec: DerivedDataset, model: Any, options: argparse.Namespace) -> Iterator[int]:
    """Make the missing parts on the connected cluster, or on one that is started; yields as `_made_here`."""
    from groundray.runtime import cluster

    with cluster.connect(verbose=options.verbose):
        check_shared(options)
        from groundray.runtime.data import index_tasks  # imports Ray Data, which `connect` made quiet

        yield from getattr(index_tasks, maker)(spec, model, options.use_gpu)
