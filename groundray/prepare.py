"""`python -m groundray.prepare`: shards from a source's own files."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from groundray.data.aside import whole_folder
from groundray.data.schema import REJECTED, ROW_GROUP_BYTES, Dataset
from groundray.data.shards import write_shards
from groundray.data.sources import coco
from groundray.data.sources.images import Checked
from groundray.data.sources.rejected import Rejected, tally
from groundray.storage import Folder

EXIT_REJECTED, EXIT_USAGE = 1, 2
LINE_SECONDS = 10.0
Item = TypeVar("Item")


class Strict(Exception):
    """With --strict: something of the source cannot be used."""


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 prepared, 1 something was rejected and --strict given, 2 a source that cannot be used."""
    options = _parser().parse_args(words)
    prepare: Callable[[argparse.Namespace, Console], None] = options.prepare
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        prepare(options, Console(highlight=False, soft_wrap=True, markup=False))
    except Strict as error:
        errors.print(f"error: {error}")
        return EXIT_REJECTED
    except (OSError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        errors.print("interrupted; nothing was written")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.prepare", description=__doc__)
    sources = parser.add_subparsers(required=True, metavar="SOURCE")

    captions = sources.add_parser("coco", help="captioned images: a folder and a captions file in the COCO layout")
    captions.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the images")
    captions.add_argument("--captions", required=True, type=Path, metavar="FILE", help="captions_*.json")
    captions.set_defaults(prepare=_coco)

    world = sources.add_parser("scenes", help="the embedded world: small drawn scenes with their ground truth")
    world.add_argument("--num-scenes", type=int, default=4000, help="scenes to train on (default: 4000)")
    world.add_argument("--num-val", type=int, default=200, help="held-out scenes (default: 200)")
    world.add_argument("--seed", type=int, default=0, help="default: 0")
    world.set_defaults(prepare=_scenes)

    for source in (captions, world):
        source.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write the shards to")
        source.add_argument("--strict", action="store_true", help="write nothing where anything must be rejected")
        source.add_argument("--overwrite", action="store_true", help="replace what another source left at --out")
        source.add_argument("--verbose", action="store_true", help="with Ray's own logs")
        source.add_argument("--row-group-mb", type=float, default=ROW_GROUP_BYTES / 2**20, help=argparse.SUPPRESS)
    return parser


def _coco(options: argparse.Namespace, console: Console) -> None:
    """Prepare captioned images in the COCO layout."""
    from groundray.runtime import cluster

    source = _coco_source(options.images, options.captions)
    if _is_prepared(options.out, source, options.overwrite, console):
        return
    found = coco.read_captions(options.captions)
    if not found.images:
        raise ValueError(f"{options.captions} names no image with a usable caption: {_listed(found.rejected)}")
    with cluster.connect(verbose=options.verbose):
        _captions(options, options.images, found, source, options.out, console)


def _captions(
    options: argparse.Namespace,
    images: Path,
    found: coco.Captions,
    source: dict[str, Any],
    out: Path,
    console: Console,
    shown: Path | None = None,
) -> None:
    """Write the shards of captioned images to `out` (which a person knows as `shown`), on the connected cluster."""
    from groundray.runtime.prepare import checked_images

    rejected = list(found.rejected)
    written = {"images": 0, "captions": 0}

    def usable() -> Iterator[tuple[coco.CaptionedImage, Checked]]:
        files = checked_images(images.absolute(), [image.file_name for image in found.images])
        for image, file in zip(_progress(found.images, "images", console), files, strict=True):
            if isinstance(file, Checked):
                written["images"] += 1
                written["captions"] += len(image.captions)
                yield image, file
            else:
                rejected.append(Rejected("image", image.id, file.reason, str(file)))

    with whole_folder(out) as aside:
        folder = Folder.at(aside)
        dataset = write_shards(
            folder, "captions", coco.rows(usable()), written, source, int(options.row_group_mb * 2**20)
        )
        if dataset.rows == 0:
            raise ValueError(f"none of the images can be used: {_listed(rejected)}")
        lines = "".join(json.dumps(item.as_json(), ensure_ascii=False) + "\n" for item in rejected)
        folder.write_bytes(REJECTED, lines.encode())
        if rejected and options.strict:
            first = rejected[0]
            raise Strict(
                f"{_listed(rejected)} (the first: {first.what} {first.id}, {first.detail}); "
                "nothing was written; without --strict the rest would be"
            )
    groups = sum(len(shard.row_groups) for shard in dataset.shards)
    megabytes = sum(shard.bytes for shard in dataset.shards) / 2**20
    console.print(
        f"{shown or out}: {written['images']} images with {written['captions']} captions, {megabytes:.1f} MB "
        f"in {len(dataset.shards)} shards ({groups} row groups)"
    )
    if rejected:
        console.print(f"rejected, see {(shown or out) / REJECTED}: {_listed(rejected)}")


def _scenes(options: argparse.Namespace, console: Console) -> None:
    """Draw the embedded world in the sources' own layouts, then prepare it as any other source."""
    from groundray.data import scenes
    from groundray.runtime import cluster

    for name, least in (("num_scenes", 1), ("num_val", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")
    world = {
        "format": "scenes",
        "version": scenes.VERSION,
        "num_scenes": options.num_scenes,
        "num_val": options.num_val,
        "seed": options.seed,
    }
    marker = options.out / "world.json"
    if marker.is_file():
        if json.loads(marker.read_text()) == world:
            console.print(f"{options.out}: this world is there already")
            return
        if not options.overwrite:
            raise ValueError(f"{options.out} holds another world ({marker}): give --overwrite to replace it")
    elif options.out.exists() and any(options.out.iterdir()) and not options.overwrite:
        raise ValueError(f"{options.out} holds something else than a world: give another --out, or --overwrite")

    with whole_folder(options.out) as aside:
        source = aside / "source"
        started = time.monotonic()
        summary = scenes.write_world(
            source,
            num_scenes=options.num_scenes,
            num_val=options.num_val,
            seed=options.seed,
            track=lambda items: _progress(items, "scenes", console),
        )
        console.print(f"drew {summary} in {time.monotonic() - started:.0f} s")
        with cluster.connect(verbose=options.verbose):
            for split in ("train", "val"):
                images, captions = source / "coco" / split, source / "coco" / "annotations" / f"captions_{split}.json"
                found = coco.read_captions(captions)
                place = Path("captions") / split
                shown = options.out / place
                _captions(options, images, found, {**world, "split": split}, aside / place, console, shown)
        (aside / "world.json").write_text(json.dumps(world, indent=2) + "\n")
    console.print(f"{options.out}: source/ in the sources' own layouts, captions/train and captions/val as shards")


def _coco_source(images: Path, captions: Path) -> dict[str, Any]:
    """Where a data set comes from; the fingerprint changes with any caption, and with any image's size or time."""
    if not images.is_dir():
        raise FileNotFoundError(f"--images: there is no folder {images}")
    if not captions.is_file():
        raise FileNotFoundError(f"--captions: there is no file {captions}")
    digest = hashlib.sha256(captions.read_bytes())
    for file in sorted(images.rglob("*")):
        if file.is_file():
            state = file.stat()
            digest.update(f"{file.relative_to(images)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return {
        "format": "coco",
        "images": str(images.resolve()),
        "captions": str(captions.resolve()),
        "fingerprint": digest.hexdigest(),
    }


def _is_prepared(out: Path, source: dict[str, Any], overwrite: bool, console: Console) -> bool:
    """Whether the shards of this very source are at `out` already.

    Raises:
        ValueError: something else is there, and it is not to be overwritten.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    there = _dataset_at(out)
    if there and there.source.get("fingerprint") == source["fingerprint"]:
        console.print(f"{out}: this source is prepared already ({there.rows} rows)")
        return True
    if not overwrite:
        raise ValueError(
            f"--out: {out} holds something else than this source's shards: give another folder, or --overwrite"
        )
    return False


def _dataset_at(out: Path) -> Dataset | None:
    """The data set at a folder, if one is there that this version can read."""
    try:
        return Dataset.open(str(out))
    except (FileNotFoundError, ValueError):
        return None


def _progress(items: Sequence[Item], what: str, console: Console) -> Iterable[Item]:
    """The items, with a bar on a terminal and a line now and then elsewhere."""
    if console.is_terminal:
        yield from track(items, description=what, console=console, transient=True)
        return
    printed = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - printed > LINE_SECONDS:
            printed = time.monotonic()
            console.print(f"{what}  {done}/{len(items)}")
        yield item


def _listed(rejected: Iterable[Rejected]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in tally(rejected).items()) or "nothing rejected"


if __name__ == "__main__":
    sys.exit(main())
