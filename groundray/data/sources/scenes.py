"""The embedded world: drawn in the layouts of other sources, and then prepared as they are."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from groundray.data.sources import coco, image_folder, text, visual_genome
from groundray.data.sources.protocol import Inputs, Source, Split, Work
from groundray.data.sources.rejected import RejectedLog

SPLITS = ("train", "val")
KINDS = ("captions", "scene_graphs", "objects", "text")


class Scenes(Source):
    name = "scenes"
    help = "the embedded world: small drawn scenes with their ground truth"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--num-scenes", type=int, default=4000, metavar="N", help="training scenes (default: 4000)")
        parser.add_argument("--num-val", type=int, default=200, metavar="N", help="held-out scenes (default: 200)")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the scenes (default: 0)")

    @property
    def _size(self) -> dict[str, int]:
        return {name: getattr(self.options, name) for name in ("num_scenes", "num_val", "seed")}

    def inputs(self) -> Inputs:
        from groundray.data import scenes  # loads the tokenizers

        for name, minimum in (("num_scenes", 1), ("num_val", 1), ("seed", 0)):
            if (number := self._size[name]) < minimum:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least {minimum}, got {number}")
        return Inputs(choices={"version": scenes.VERSION, **self._size})

    def folders(self) -> Sequence[str]:
        return [f"{kind}/{split}" for kind in KINDS for split in SPLITS]

    def splits(self, work: Work) -> Iterable[Split]:
        from groundray.data import scenes

        images = work.out / "source"
        source = Path(images.path) if images.local else work.scratch / "world"
        started = time.monotonic()
        world = scenes.write_world(source, **self._size, track=lambda items: work.track(items, "scenes"))
        work.tell(f"drew {world} in {time.monotonic() - started:.0f} s")
        if not images.local:
            images.upload(source)  # where all machines of a cluster can read them
        vocabulary = None
        for split in SPLITS:
            pictures = images / f"coco/{split}"
            captions = source / "coco" / "annotations" / f"captions_{split}.json"
            yield coco.captioned_split(f"captions/{split}", pictures, captions, work)
            folder = source / "visual_genome" / split
            names = ("objects", "attributes", "relationships", "image_data")
            files = visual_genome.Files(*(folder / f"{name}.json" for name in names))
            rejected = RejectedLog()
            found = visual_genome.SceneGraphs(files, visual_genome.Filter(vocabulary=vocabulary), rejected)
            vocabulary = (found.predicates, found.classes)
            yield visual_genome.graph_split(f"scene_graphs/{split}", pictures, found, rejected, work.limit)
            yield text.text_split(f"text/{split}", [f"{images}/text/{split}.txt"], work)
        yield from image_folder.labelled_splits(
            {f"objects/{split}": (source / "objects" / split, images / "objects" / split) for split in SPLITS},
            work,
        )
