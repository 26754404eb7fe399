"""The embedded world on disk, in the layouts of the sources that it replaces.

coco/{train,val}/ID.jpg      coco/annotations/captions_{train,val}.json          COCO captions
visual_genome/{train,val}/   image_data, objects, attributes, relationships .json  Visual Genome, of the same images
objects/{train,val}/NOUN/*.jpg                                                  an image folder of single objects
text/{train,val}.txt                                                             every caption, one per line
norms/                       concreteness, categories, features, composition .csv
triplets.csv                 the relations of the held-out scenes
tokenizer/                   a WordPiece tokenizer of the captions' words
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from groundray.data.processes import call_in_processes
from groundray.data.scenes import ground_truth
from groundray.data.scenes.drawing import jpeg
from groundray.data.scenes.scene import SIZE, Object, Scene, make_object, make_scene, relations
from groundray.data.scenes.vocabulary import SINGLES
from groundray.data.scenes.wording import captions
from groundray.storage.folder import Folder

VERSION = 10
BATCH = 100  # scenes per drawing task
Track = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class World:
    """Counts of what was written."""

    scenes: int
    objects: int
    captions: int

    def __str__(self) -> str:
        return f"{self.scenes} scenes with {self.captions} captions and {self.objects} single objects"


def write_world(
    out: Path,
    num_scenes: int,
    num_val: int = 200,
    seed: int = 0,
    objects_per_noun: int = 200,
    track: Track = iter,
    workers: int | None = None,
) -> World:
    """Write the world to the folder `out`, the same bytes for the same arguments, and return its counts.

    Args:
        num_scenes: number of training scenes.
        num_val: number of held-out scenes.
        objects_per_noun: number of single training objects per noun; a quarter as many are held out.
        track: wraps the sequence of batches, to show progress.
        workers: number of drawing processes (default: the available cores).
    """
    splits = {
        "train": [make_scene(seed, "train", index, index) for index in range(num_scenes)],
        "val": [make_scene(seed, "val", index, num_scenes + index) for index in range(num_val)],
    }
    singles = {
        split: [make_object(seed, split, i, noun, i) for noun in SINGLES for i in range(count)]
        for split, count in (("train", objects_per_noun), ("val", max(1, objects_per_noun // 4)))
    }
    jobs = [
        (out / "coco" / split, scenes[start : start + BATCH], False)
        for split, scenes in splits.items()
        for start in range(0, len(scenes), BATCH)
    ] + [
        (out / "objects" / split, scenes[start : start + BATCH], True)
        for split, scenes in singles.items()
        for start in range(0, len(scenes), BATCH)
    ]
    for folder, scenes, by_noun in jobs:
        for name in {_folder(folder, scene, by_noun) for scene in scenes}:
            name.mkdir(parents=True, exist_ok=True)
    drawn = call_in_processes(_draw, jobs, workers or joblib.cpu_count())
    with contextlib.closing(drawn):
        for _ in track(jobs):
            next(drawn)

    texts: list[str] = []
    for split, scenes in splits.items():
        worded = [captions(scene) for scene in scenes]
        _write_json(out / "coco" / "annotations" / f"captions_{split}.json", _coco(scenes, worded))
        for name, content in _visual_genome(scenes).items():
            _write_json(out / "visual_genome" / split / f"{name}.json", content)
        lines = [text for of_scene in worded for text in of_scene]
        _write(out / "text" / f"{split}.txt", "".join(f"{line}\n" for line in lines))
        texts += lines
    _write_tables(out, splits["val"])
    _write_tokenizer(out / "tokenizer", texts)
    return World(num_scenes + num_val, sum(map(len, singles.values())), len(texts))


def _folder(folder: Path, scene: Scene, by_noun: bool) -> Path:
    return folder / scene.objects[0].noun if by_noun else folder


def _draw(folder: Path, scenes: Sequence[Scene], by_noun: bool) -> None:
    for scene in scenes:
        (_folder(folder, scene, by_noun) / f"{scene.id}.jpg").write_bytes(jpeg(scene))


def _coco(scenes: Sequence[Scene], worded: Sequence[list[str]]) -> dict[str, Any]:
    numbered = enumerate((scene.id, text) for scene, texts in zip(scenes, worded, strict=True) for text in texts)
    return {
        "info": {"description": "groundray's embedded world", "version": str(VERSION)},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": [
            {"id": scene.id, "file_name": f"{scene.id}.jpg", "width": SIZE, "height": SIZE, "license": 1}
            for scene in scenes
        ],
        "annotations": [{"id": id, "image_id": image, "caption": text} for id, (image, text) in numbered],
    }


def _visual_genome(scenes: Sequence[Scene]) -> dict[str, list[dict[str, Any]]]:
    content: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("image_data", "objects", "attributes", "relationships")
    }
    for scene in scenes:
        boxes = [_vg_object(scene, number, item) for number, item in enumerate(scene.objects)]
        content["image_data"].append({"image_id": scene.id, "url": "", "width": SIZE, "height": SIZE})
        content["objects"].append({"image_id": scene.id, "objects": boxes})
        described = [box | {"attributes": _attributes(item)} for box, item in zip(boxes, scene.objects, strict=True)]
        content["attributes"].append({"image_id": scene.id, "attributes": described})
        related = [
            {
                "relationship_id": scene.id * 100 + number,
                "predicate": relation.predicate,
                "synsets": [],
                "subject": _vg_end(boxes[relation.subject]),
                "object": _vg_end(boxes[relation.object]),
            }
            for number, relation in enumerate(relations(scene.objects))
        ]
        content["relationships"].append({"image_id": scene.id, "relationships": related})
    return content


def _vg_object(scene: Scene, number: int, item: Object) -> dict[str, Any]:
    return {
        "object_id": scene.id * 10 + number,
        "x": item.x,
        "y": item.y,
        "w": item.extent,
        "h": item.extent,
        "names": [item.noun],
        "synsets": [f"{item.noun}.n.01"],
        "merged_object_ids": [],
    }


def _vg_end(box: dict[str, Any]) -> dict[str, Any]:
    """Return an end of a relationship, which has `name` in place of `names`."""
    return {key: value for key, value in box.items() if key != "names"} | {"name": box["names"][0]}


def _attributes(item: Object) -> list[str]:
    """Return the attributes of an object that its noun does not imply."""
    defining = item.kind.attribute if item.kind else None
    return [word for word in (item.colour, item.texture, item.size) if word != defining]


def _write_tables(out: Path, scenes: Sequence[Scene]) -> None:
    """Write the norms, and the triplets of some scenes."""
    triplets = (
        (scene.id, scene.objects[relation.subject].noun, relation.predicate, scene.objects[relation.object].noun)
        for scene in scenes
        for relation in relations(scene.objects)
    )
    tables: dict[str, tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]] = {
        "norms/concreteness": (("word", "concreteness", "sd", "percent_known"), ground_truth.concreteness()),
        "norms/categories": (("category", "word", "concreteness"), ground_truth.categories()),
        "norms/features": (("concept", "feature", "production_frequency", "type"), ground_truth.features()),
        "norms/composition": (("phrase", "target"), ground_truth.composition()),
        **{
            f"norms/category_sets/{name}": (("category", "word"), rows)
            for name, rows in ground_truth.category_sets().items()
        },
        "triplets": (("image", "subject", "predicate", "object"), triplets),
    }
    (out / "norms" / "category_sets").mkdir(parents=True, exist_ok=True)
    for name, (columns, lines) in tables.items():
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(lines)


def _write_tokenizer(folder: Path, texts: Sequence[str]) -> None:
    """Write a BERT tokenizer whose word pieces are the captions' words, the most frequent first, and single letters.

    The library's trainer breaks ties randomly, but the same seed must give the same bytes.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    counts = Counter(word for text in texts for word in text.split())
    words = sorted({*counts, *ground_truth.vocabulary()}, key=lambda word: (-counts[word], word))
    letters = sorted({letter for word in words for letter in word})
    pieces = dict.fromkeys([*specials, *words, *letters, *(f"##{letter}" for letter in letters)])
    tokenizer = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", specials.index("[CLS]")), ("[SEP]", specials.index("[SEP]"))],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "do_lower_case": True,
            "model_max_length": 512,
            **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        },
    )
    Folder.at(folder).seal_files(["tokenizer.json", "tokenizer_config.json"])


def _write_json(file: Path, content: Any) -> None:
    _write(file, json.dumps(content, ensure_ascii=False))


def _write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
