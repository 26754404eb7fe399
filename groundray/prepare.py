"""`python -m groundray.prepare`: write shards from a source's own files."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from groundray.cli.command import plain_console, run_command
from groundray.cli.preparation import (
    Prepared,
    describe_source,
    is_prepared,
    scene_graph_vocabulary,
    summary,
    usable_images,
    write_datasets,
)
from groundray.cli.progress import Progress
from groundray.cli.workdir import go_home
from groundray.data.schema import ROW_GROUP_BYTES
from groundray.data.sources import coco, image_folder, text, visual_genome
from groundray.data.sources.rejected import Rejected
from groundray.storage.file_names import escaped

if TYPE_CHECKING:
    from groundray.storage.folder import Folder


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a source and return the exit status: 0 prepared, 1 something was rejected and `--strict` was given, 2 the
    source cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; nothing was written")


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    prepare: Callable[[argparse.Namespace, Console], None] = options.prepare
    go_home(errors.print)
    prepare(options, plain_console())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="groundray prepare", description="Write shards from a data source.")
    sources = parser.add_subparsers(required=True, metavar="SOURCE")

    captions = sources.add_parser("coco", help="captioned images: a folder and a captions file in COCO's layout")
    captions.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the images")
    captions.add_argument("--captions", required=True, type=Path, metavar="FILE", help="COCO's captions_*.json")
    captions.set_defaults(prepare=_prepare_coco)

    graphs = sources.add_parser("visual-genome", help="scene graphs: images and four files in Visual Genome's layout")
    graphs.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the images")
    for name in ("objects", "attributes", "relationships", "image-data"):
        file = f"{name.replace('-', '_')}.json"
        graphs.add_argument(f"--{name}", required=True, type=Path, metavar="FILE", help=f"Visual Genome's {file}")
    graphs.add_argument(
        "--num-predicates", type=int, default=114, metavar="N", help="most frequent predicates to keep (default: 114)"
    )
    graphs.add_argument(
        "--num-classes", type=int, default=55, metavar="N", help="most frequent object classes to keep (default: 55)"
    )
    graphs.add_argument(
        "--by", choices=("synset", "name"), default="synset", help="what defines an object's class (default: synset)"
    )
    graphs.add_argument(
        "--object-aliases", type=Path, metavar="FILE", help="object_alias.txt, object names to merge (default: none)"
    )
    graphs.add_argument(
        "--predicate-aliases",
        type=Path,
        metavar="FILE",
        help="relationship_alias.txt, predicates to merge (default: none)",
    )
    graphs.add_argument(
        "--val-fraction",
        type=float,
        metavar="FRACTION",
        help="fraction of the images to hold out, between 0 and 1: writes DIR/train and DIR/val (default: no split)",
    )
    graphs.add_argument(
        "--vocabulary",
        metavar="DIR",
        help="scene graph shards whose predicates and classes to use (default: the most frequent ones)",
    )
    graphs.set_defaults(prepare=_prepare_visual_genome)

    labelled = sources.add_parser(
        "image-folder", help="images with one label each: train/CLASS/*.jpg and val/CLASS/*.jpg"
    )
    labelled.add_argument(
        "--root", required=True, type=Path, metavar="DIR", help="folder that contains train/ and, if any, val/"
    )
    labelled.set_defaults(prepare=_prepare_image_folder)

    lines = sources.add_parser(
        "text",
        help="text files with a sentence or two per line",
        description="Write shards from text files. A line is a sample of stage language, which reads its first "
        "language.max_tokens word pieces (about 1.3 a word): put a sentence or two on a line, or split long lines "
        "with --max-words. `groundray train --dry-run` says how much of the text is cut.",
    )
    lines.add_argument(
        "--files",
        required=True,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="text files in UTF-8, or in UTF-16 or UTF-32 with a byte order mark",
    )
    lines.add_argument(
        "--max-words",
        type=int,
        metavar="N",
        help="split longer lines into parts of at most N words (default: no split)",
    )
    lines.set_defaults(prepare=_prepare_text)

    world = sources.add_parser("scenes", help="the embedded world: small drawn scenes with their ground truth")
    world.add_argument("--num-scenes", type=int, default=4000, metavar="N", help="training scenes (default: 4000)")
    world.add_argument("--num-val", type=int, default=200, metavar="N", help="held-out scenes (default: 200)")
    world.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the scenes (default: 0)")
    world.set_defaults(prepare=_prepare_scenes)

    for source in (captions, graphs, labelled, lines, world):
        source.add_argument("--out", required=True, metavar="DIR", help="folder or URL to write the shards to")
        source.add_argument("--strict", action="store_true", help="write nothing if anything has to be rejected")
        source.add_argument("--overwrite", action="store_true", help="replace another source's shards in --out")
        source.add_argument("--verbose", action="store_true", help="show Ray's own logs, where RAY_ADDRESS is set")
        source.add_argument("--row-group-mb", type=float, default=ROW_GROUP_BYTES / 2**20, help=argparse.SUPPRESS)
    return parser


def _prepare_coco(options: argparse.Namespace, console: Console) -> None:
    """Prepare captioned images in COCO's layout."""
    source = describe_source("coco", [options.captions], [options.images])
    if not is_prepared(options, ["."], source, console):
        write_datasets(options, console, source, {".": _captions(options.images, options.captions, console)})


def _captions(images: Path | Folder, file: Path, console: Console) -> Prepared:
    captions = coco.read_captions(file)
    if not captions.images:
        raise ValueError(f"{file} names no image with a usable caption: {summary(captions.rejected)}")
    rejected = list(captions.rejected)
    return Prepared("captions", coco.rows(usable_images(images, captions.images, rejected, console)), rejected)


def _prepare_visual_genome(options: argparse.Namespace, console: Console) -> None:
    """Prepare scene graphs in Visual Genome's layout."""
    fraction = options.val_fraction
    for name in ("num_predicates", "num_classes"):
        if (number := getattr(options, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {number}")
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"--val-fraction: expected a fraction between 0 and 1, got {fraction:g}")
    files = visual_genome.Files(options.objects, options.attributes, options.relationships, options.image_data)
    aliases = [file for file in (options.object_aliases, options.predicate_aliases) if file]
    # these names are part of the fingerprint: another name would make every prepared data set another source
    choices = {
        "num_predicates": options.num_predicates,
        "num_classes": options.num_classes,
        "by": options.by,
        "val_share": fraction,
    }
    vocabulary = scene_graph_vocabulary(options.vocabulary) if options.vocabulary else None
    if vocabulary:
        choices["vocabulary"] = vocabulary
    source = describe_source("visual-genome", [*vars(files).values(), *aliases], [options.images], **choices)
    if is_prepared(options, ["."] if fraction is None else ["train", "val"], source, console):
        return
    keep = visual_genome.Filter(
        predicates=options.num_predicates,
        classes=options.num_classes,
        by=options.by,
        object_aliases=visual_genome.read_aliases(options.object_aliases) if options.object_aliases else {},
        predicate_aliases=visual_genome.read_aliases(options.predicate_aliases) if options.predicate_aliases else {},
        vocabulary=vocabulary,
    )
    with console.status("reading scene graphs"):
        found = visual_genome.read_graphs(files, keep)
    if fraction is None:
        parts = {".": _scene_graphs(options.images, found, found.graphs, console)}
    else:
        held_out = [visual_genome.is_held_out(graph.id, fraction) for graph in found.graphs]
        split = {
            name: [graph for graph, out in zip(found.graphs, held_out, strict=True) if out == (name == "val")]
            for name in ("train", "val")
        }
        for name, graphs in split.items():
            if not graphs:
                raise ValueError(f"--val-fraction {fraction:g} leaves none of {len(found.graphs)} images for {name}")
        parts = {
            # what cannot be used belongs to neither part: it is reported with the first
            name: _scene_graphs(options.images, found, graphs, console, report_rejected=name == "train")
            for name, graphs in split.items()
        }
    write_datasets(options, console, source, parts)


def _scene_graphs(
    images: Path | Folder,
    found: visual_genome.Graphs,
    graphs: Sequence[visual_genome.Graph],
    console: Console,
    report_rejected: bool = True,
) -> Prepared:
    if not graphs:
        raise ValueError(f"no image has an object of a kept class: {summary(found.rejected)}")
    rejected = list(found.rejected) if report_rejected else []
    return Prepared(
        "scene_graphs",
        visual_genome.rows(usable_images(images, graphs, rejected, console)),
        rejected,
        {f"left out, {name}": count for name, count in found.skipped.items()} | found.without_synset
        if report_rejected
        else {},
        {"classes": found.classes, "predicates": found.predicates},
    )


def _prepare_image_folder(options: argparse.Namespace, console: Console) -> None:
    """Prepare images with one label each, in class folders."""
    if not (options.root / "train").is_dir():
        raise FileNotFoundError(f"--root: expected class folders in {options.root / 'train'}, there is no such folder")
    parts = [name for name in ("train", "val") if (options.root / name).is_dir()]
    for name in image_folder.unread(options.root, parts):
        console.print(
            f"{escaped(str(options.root / name))} is not read: expected the pictures in train/ and val/", soft_wrap=True
        )
    source = describe_source("image-folder", [], [options.root / part for part in parts])
    if not is_prepared(options, parts, source, console):
        datasets = _labelled_images(options.root, {part: options.root / part for part in parts}, console)
        write_datasets(options, console, source, datasets)


def _labelled_images(root: Path, images: Mapping[str, Path | Folder], console: Console) -> dict[str, Prepared]:
    """Return a data set for each part of an image folder.

    Args:
        root: the folder whose parts are listed.
        images: for each part, the folder that the images are read from.
    """
    prepared: dict[str, Prepared] = {}
    classes: tuple[str, ...] | None = None
    for part, folder in images.items():
        found = image_folder.read_folder(root / part, classes)
        classes = found.classes
        rejected = list(found.rejected)
        rows = image_folder.rows(usable_images(folder, found.images, rejected, console))
        passed_over = {"passed over, hidden and system files": found.passed_over} if found.passed_over else {}
        prepared[part] = Prepared("labelled_images", rows, rejected, passed_over, {"classes": classes})
    return prepared


def _prepare_text(options: argparse.Namespace, console: Console) -> None:
    """Prepare lines of text."""
    if options.max_words is not None and options.max_words < 1:
        raise ValueError(f"--max-words: expected at least 1, got {options.max_words}")
    choices = {"max_words": options.max_words} if options.max_words else {}
    source = describe_source("text", options.files, [], **choices)
    if not is_prepared(options, ["."], source, console):
        write_datasets(options, console, source, {".": _lines(options.files, options.max_words)})


def _lines(files: Sequence[Path], max_words: int | None = None) -> Prepared:
    rejected: list[Rejected] = []
    return Prepared("text", text.read_lines(files, rejected, max_words), rejected)


def _prepare_scenes(options: argparse.Namespace, console: Console) -> None:
    """Draw the embedded world in the sources' own layouts, then prepare it like any other source."""
    from groundray.data import scenes

    for name, minimum in (("num_scenes", 1), ("num_val", 1), ("seed", 0)):
        if (number := getattr(options, name)) < minimum:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {minimum}, got {number}")
    size = {"num_scenes": options.num_scenes, "num_val": options.num_val, "seed": options.seed}
    splits = ("train", "val")
    parts = [f"{kind}/{split}" for kind in ("captions", "scene_graphs", "objects", "text") for split in splits]
    description = describe_source("scenes", [], [], version=scenes.VERSION, **size)
    if is_prepared(options, parts, description, console):
        return

    def draw(out: Folder) -> dict[str, Prepared]:
        images = out / "source"
        source = Path(images.path) if images.local else Path(temporary)
        started = time.monotonic()
        with Progress(console) as progress:
            summary = scenes.write_world(source, **size, track=lambda items: progress.track(items, "scenes"))
        console.print(f"drew {summary} in {time.monotonic() - started:.0f} s")
        if not images.local:
            images.upload(source)  # where all machines of a cluster can read them
        prepared: dict[str, Prepared] = {}
        vocabulary = None
        for split in splits:
            annotations = source / "coco" / "annotations" / f"captions_{split}.json"
            prepared[f"captions/{split}"] = _captions(images / f"coco/{split}", annotations, console)
            folder = source / "visual_genome" / split
            names = ("objects", "attributes", "relationships", "image_data")
            files = visual_genome.Files(*(folder / f"{name}.json" for name in names))
            found = visual_genome.read_graphs(files, visual_genome.Filter(vocabulary=vocabulary))
            vocabulary = (found.predicates, found.classes)
            prepared[f"scene_graphs/{split}"] = _scene_graphs(images / f"coco/{split}", found, found.graphs, console)
            prepared[f"text/{split}"] = _lines([source / "text" / f"{split}.txt"])
        objects = {split: images / "objects" / split for split in splits}
        for split, labelled in _labelled_images(source / "objects", objects, console).items():
            prepared[f"objects/{split}"] = labelled
        return prepared

    with tempfile.TemporaryDirectory() as temporary:
        write_datasets(options, console, description, draw)


if __name__ == "__main__":
    sys.exit(main())
