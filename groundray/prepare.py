"""`python -m groundray.prepare`: shards from a source's own files."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from groundray.cli.preparation import Prepared, Strict, is_prepared, listed, progress, source_of, usable, write
from groundray.cli.workdir import go_home
from groundray.data.schema import ROW_GROUP_BYTES, Dataset
from groundray.data.sources import coco, image_folder, text, visual_genome
from groundray.data.sources.rejected import Rejected
from groundray.rng import hash64, hash_name
from groundray.storage.folder import Folder

EXIT_REJECTED, EXIT_USAGE = 1, 2


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 prepared, 1 something was rejected and --strict given, 2 a source that cannot be used."""
    options = _parser().parse_args(words)
    prepare: Callable[[argparse.Namespace, Console], None] = options.prepare
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        go_home(errors.print)
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

    graphs = sources.add_parser("visual-genome", help="scene graphs: images and four files in Visual Genome's layout")
    graphs.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the images")
    for name in ("objects", "attributes", "relationships", "image-data"):
        graphs.add_argument(
            f"--{name}", required=True, type=Path, metavar="FILE", help=f"{name.replace('-', '_')}.json"
        )
    graphs.add_argument(
        "--num-predicates", type=int, default=114, metavar="N", help="most frequent ones (default: 114)"
    )
    graphs.add_argument("--num-classes", type=int, default=55, metavar="N", help="most frequent ones (default: 55)")
    graphs.add_argument("--by", choices=("synset", "name"), default="synset", help="what a class is (default: synset)")
    graphs.add_argument("--object-aliases", type=Path, metavar="FILE", help="object_alias.txt: names to merge")
    graphs.add_argument("--predicate-aliases", type=Path, metavar="FILE", help="relationship_alias.txt: names to merge")
    graphs.add_argument(
        "--val-share", type=float, metavar="SHARE", help="hold out so many images: DIR/train and DIR/val"
    )
    graphs.add_argument("--vocabulary", metavar="DIR", help="predicates and classes of these shards")
    graphs.set_defaults(prepare=_visual_genome)

    labelled = sources.add_parser(
        "image-folder", help="images of one thing each: train/CLASS/*.jpg and val/CLASS/*.jpg"
    )
    labelled.add_argument("--root", required=True, type=Path, metavar="DIR", help="folder that holds train/ and val/")
    labelled.set_defaults(prepare=_image_folder)

    lines = sources.add_parser("text", help="text files, a sentence or paragraph a line")
    lines.add_argument("--files", required=True, nargs="+", type=Path, metavar="FILE", help="text in UTF-8")
    lines.set_defaults(prepare=_text)

    world = sources.add_parser("scenes", help="the embedded world: small drawn scenes with their ground truth")
    world.add_argument("--num-scenes", type=int, default=4000, help="scenes to train on (default: 4000)")
    world.add_argument("--num-val", type=int, default=200, help="held-out scenes (default: 200)")
    world.add_argument("--seed", type=int, default=0, help="default: 0")
    world.set_defaults(prepare=_scenes)

    for source in (captions, graphs, labelled, lines, world):
        source.add_argument("--out", required=True, metavar="DIR", help="folder or URL to write the shards to")
        source.add_argument("--strict", action="store_true", help="write nothing where anything must be rejected")
        source.add_argument("--overwrite", action="store_true", help="replace what another source left at --out")
        source.add_argument("--verbose", action="store_true", help="with Ray's own logs")
        source.add_argument("--row-group-mb", type=float, default=ROW_GROUP_BYTES / 2**20, help=argparse.SUPPRESS)
    return parser


def _coco(options: argparse.Namespace, console: Console) -> None:
    """Prepare captioned images in the COCO layout."""
    source = source_of("coco", [options.captions], [options.images])
    if not is_prepared(options, ["."], source, console):
        found = _captions(Folder.at(options.images), options.captions, console)
        write(options, console, source, {".": found})


def _captions(images: Folder, file: Path, console: Console) -> Prepared:
    found = coco.read_captions(file)
    if not found.images:
        raise ValueError(f"{file} names no image with a usable caption: {listed(found.rejected)}")
    rejected = list(found.rejected)
    return Prepared("captions", coco.rows(usable(images, found.images, rejected, console)), rejected)


def _visual_genome(options: argparse.Namespace, console: Console) -> None:
    """Prepare scene graphs in Visual Genome's layout."""
    files = visual_genome.Files(options.objects, options.attributes, options.relationships, options.image_data)
    aliases = [file for file in (options.object_aliases, options.predicate_aliases) if file]
    choices = {name: getattr(options, name) for name in ("num_predicates", "num_classes", "by", "val_share")}
    for name in ("num_predicates", "num_classes"):
        if choices[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {choices[name]}")
    if options.val_share is not None and not 0 < options.val_share < 1:
        raise ValueError(f"--val-share: expected a share between 0 and 1, got {options.val_share:g}")
    vocabulary = None
    if options.vocabulary:
        Folder.connect(options.vocabulary)
        words = Dataset.open(options.vocabulary, "scene_graphs").vocabulary
        vocabulary = (words["predicates"], words["classes"])
        choices["vocabulary"] = vocabulary
    source = source_of("visual-genome", [*vars(files).values(), *aliases], [options.images], **choices)
    parts = ["."] if options.val_share is None else ["train", "val"]
    if is_prepared(options, parts, source, console):
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
    if options.val_share is None:
        write(options, console, source, {".": _graphs(Folder.at(options.images), found, found.graphs, console)})
        return
    held_out = [_draw(graph.id) < options.val_share for graph in found.graphs]
    split = {
        name: [graph for graph, out in zip(found.graphs, held_out, strict=True) if out == (name == "val")]
        for name in ("train", "val")
    }
    for name, graphs in split.items():
        if not graphs:
            raise ValueError(f"--val-share {options.val_share:g} leaves no image of {len(found.graphs)} for {name}")
    write(
        options,
        console,
        source,
        {
            # what cannot be used belongs to no part: it is told with the first
            name: _graphs(Folder.at(options.images), found, graphs, console, told=name == "train")
            for name, graphs in split.items()
        },
    )


def _graphs(
    images: Folder,
    found: visual_genome.Graphs,
    graphs: Sequence[visual_genome.Graph],
    console: Console,
    told: bool = True,
) -> Prepared:
    if not graphs:
        raise ValueError(f"no image has an object of a kept class: {listed(found.rejected)}")
    rejected = list(found.rejected) if told else []
    return Prepared(
        "scene_graphs",
        visual_genome.rows(usable(images, graphs, rejected, console)),
        rejected,
        {f"left out, {name}": count for name, count in found.skipped.items()} if told else {},
        {"classes": found.classes, "predicates": found.predicates},
    )


def _image_folder(options: argparse.Namespace, console: Console) -> None:
    """Prepare images of one thing each, in class folders."""
    if not (options.root / "train").is_dir():
        raise FileNotFoundError(f"--root: expected class folders in {options.root / 'train'}, there is no such folder")
    parts = [name for name in ("train", "val") if (options.root / name).is_dir()]
    source = source_of("image-folder", [], [options.root / part for part in parts])
    if not is_prepared(options, parts, source, console):
        write(options, console, source, _labelled(options.root, Folder.at(options.root), parts, console))


def _labelled(root: Path, images: Folder, parts: Sequence[str], console: Console) -> dict[str, Prepared]:
    prepared: dict[str, Prepared] = {}
    classes: tuple[str, ...] | None = None
    for part in parts:
        found = image_folder.read_folder(root / part, classes)
        classes = found.classes
        rejected = list(found.rejected)
        rows = image_folder.rows(usable(images / part, found.images, rejected, console))
        prepared[part] = Prepared("labelled_images", rows, rejected, {}, {"classes": classes})
    return prepared


def _text(options: argparse.Namespace, console: Console) -> None:
    """Prepare lines of text."""
    source = source_of("text", options.files, [])
    if not is_prepared(options, ["."], source, console):
        write(options, console, source, {".": _lines(options.files)})


def _lines(files: Sequence[Path]) -> Prepared:
    rejected: list[Rejected] = []
    return Prepared("text", text.read_lines(files, rejected), rejected)


def _scenes(options: argparse.Namespace, console: Console) -> None:
    """Draw the embedded world in the sources' own layouts, then prepare it as any other source."""
    from groundray.data import scenes

    for name, least in (("num_scenes", 1), ("num_val", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")
    world = {
        "version": scenes.VERSION,
        "num_scenes": options.num_scenes,
        "num_val": options.num_val,
        "seed": options.seed,
    }
    splits = ("train", "val")
    parts = [f"{kind}/{split}" for kind in ("captions", "scene_graphs", "objects", "text") for split in splits]
    made = source_of("scenes", [], [], **world)
    if is_prepared(options, parts, made, console):
        return

    def draw(aside: Folder) -> dict[str, Prepared]:
        images = aside / "source"
        source = Path(images.path) if images.local else local
        started = time.monotonic()
        summary = scenes.write_world(
            source,
            num_scenes=options.num_scenes,
            num_val=options.num_val,
            seed=options.seed,
            track=lambda items: progress(items, "scenes", console),
        )
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
            prepared[f"scene_graphs/{split}"] = _graphs(images / f"coco/{split}", found, found.graphs, console)
            prepared[f"text/{split}"] = _lines([source / "text" / f"{split}.txt"])
        singles = _labelled(source / "objects", images / "objects", splits, console)
        return prepared | {f"objects/{part}": labelled for part, labelled in singles.items()}

    with tempfile.TemporaryDirectory() as drawn:
        local = Path(drawn)
        write(options, console, made, draw)


def _draw(id: str) -> float:
    """A number from 0 to 1 that an image's id fixes."""
    return int(hash64(hash_name(id))) / 2**64


if __name__ == "__main__":
    sys.exit(main())
