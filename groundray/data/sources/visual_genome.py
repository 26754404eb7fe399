"""Visual Genome: scene graphs of an image's objects, their attributes and their relations.

The source is four JSON files, each a list with one entry per image, in the layouts of version 1.0 (`id`, `name`) and of
later versions (`image_id`, `object_id`, `names`, `synsets`). Files are read as streams and stored as integer columns.
"""

from __future__ import annotations

import argparse
import reprlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from groundray.data.schema import LEFT_OUT, Dataset
from groundray.data.sources.held_out import add_val_fraction, is_held_out, val_fraction_of
from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.json_values import as_integer, is_text, read_json_list
from groundray.data.sources.protocol import Inputs, Part, Row, Source, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, RejectedLog, Rejections, summary
from groundray.storage.folder import Folder
from groundray.storage.text_encoding import read_text

NONE = "none"  # the name of index 0 of predicates and classes
By = Literal["synset", "name"]


@dataclass(frozen=True)
class Files:
    """The four files of Visual Genome."""

    objects: Path
    attributes: Path
    relationships: Path
    image_data: Path


@dataclass(frozen=True)
class Filter:
    """Criteria for the objects and relations to keep.

    Attributes:
        predicates, classes: number of each that are kept, the most frequent first.
        max_objects: maximum number of objects per image; objects in more kept relations have priority.
        by: what identifies a class or predicate: `synset` (the name where there is none) or `name`.
        object_aliases, predicate_aliases: by name, the name that it is merged into.
        vocabulary: predicates and classes of other shards, used instead of the most frequent ones.
    """

    predicates: int = 114
    classes: int = 55
    max_objects: int = 32
    by: By = "synset"
    object_aliases: Mapping[str, str] = field(default_factory=dict)
    predicate_aliases: Mapping[str, str] = field(default_factory=dict)
    vocabulary: tuple[Sequence[str], Sequence[str]] | None = None


@dataclass(frozen=True)
class Graph:
    """An image's kept objects and relations.

    Attributes:
        id: id of the image.
        file_names: paths where its file may be, in the order in which they are tried.
        classes: class of each object, an index of `SceneGraphs.classes`.
        phrases: attribute and name of each object.
        relations: (subject, predicate, object): indices of the objects, and of `SceneGraphs.predicates`.
    """

    id: str
    file_names: tuple[str, ...]
    classes: tuple[int, ...]
    phrases: tuple[str, ...]
    relations: tuple[tuple[int, int, int], ...]


class SceneGraphs:
    """The scene graphs of the files. No image is opened.

    The items of the files are columns of numbers in memory, about 40 bytes each; a graph is made when it is asked for.

    Args:
        rejected: gets the items that cannot be used.

    Attributes:
        classes, predicates: the vocabularies; index 0 is NONE.
        ids: ids of the images that have an object of a kept class, in ascending order.
        skipped: numbers of objects and relations that the filter left out, once `graphs` has ended.
        without_synset: numbers of objects and relations that the source gives no synset, by what they got instead.

    Raises:
        ValueError: a file is not a JSON list, or no entry has its list; the message has the file.
    """

    def __init__(self, files: Files, keep: Filter, rejected: Rejections) -> None:
        self._keep, self._rejected = keep, rejected
        self._images = _read_images(files.image_data, rejected)
        self._objects = objects = _read_objects(files.objects, self._images, keep, rejected)
        _read_attributes(files.attributes, objects, rejected)
        self._relations = relations = _read_relations(files.relationships, objects, keep, rejected)
        objects.forget_ids()
        settled = {"objects": objects.classes.settle(), "relations": relations.predicates.settle()}
        self.without_synset = {
            f"{what} without a synset, {decided}": count
            for what, counts in settled.items()
            for decided, count in counts.items()
            if keep.by == "synset"
        }
        given = keep.vocabulary or (None, None)
        self._classes = _vocabulary(objects.classes, keep.classes, given[1])
        self._predicates = _vocabulary(relations.predicates, keep.predicates, given[0])
        self.classes, self.predicates = tuple(self._classes), tuple(self._predicates)
        self.skipped: Counter[str] = Counter()
        images = np.asarray(objects.image)
        self._class_of = _indices(objects.classes, self._classes)
        self.ids: list[int] = np.unique(images[self._class_of > 0]).tolist()

    def graphs(self, is_chosen: Callable[[str], bool] = lambda _: True, report: bool = True) -> Iterator[Graph]:
        """Yield the graphs of the images in order of their ids.

        Args:
            is_chosen: takes the id of an image, and returns whether to yield its graph.
            report: reject images without an object, and count what is skipped, also of images that are not chosen.
        """
        objects, relations, class_of = self._objects, self._relations, self._class_of
        predicate_of = _indices(relations.predicates, self._predicates)
        images, subjects = np.asarray(objects.image), np.asarray(relations.subject)
        rows_of, relations_of = _Grouped(images), _Grouped(images[subjects])
        names, attributes = objects.names.texts, objects.attributes.texts
        skipped: Counter[str] = Counter()
        for image in sorted(self._images):
            rows = [row for row in rows_of.rows(image) if class_of[row]]
            if report:
                skipped["objects of other classes"] += rows_of.count(image) - len(rows)
            triplets: dict[tuple[int, int, int], None] = {}
            for row in relations_of.rows(image):
                triplet = (relations.subject[row], int(predicate_of[row]), relations.object[row])
                if not triplet[1]:
                    skipped["relations of other predicates"] += 1
                elif not (class_of[triplet[0]] and class_of[triplet[2]]):
                    skipped["relations of dropped objects"] += 1
                elif triplet in triplets:
                    skipped["relations said twice"] += 1
                else:
                    triplets[triplet] = None
            if not rows:
                if report:
                    detail = "none of its objects is of a kept class"
                    self._rejected.append(Rejected("image", str(image), "no object", detail))
                continue
            relation_count = Counter(end for subject, _, object in triplets for end in (subject, object))
            kept = sorted(sorted(rows, key=lambda row: -relation_count[row])[: self._keep.max_objects])
            index = {row: i for i, row in enumerate(kept)}
            inside = tuple((index[s], p, index[o]) for s, p, o in triplets if s in index and o in index)
            skipped["objects beyond the most an image may have"] += len(rows) - len(kept)
            skipped["relations of dropped objects"] += len(triplets) - len(inside)
            if report:
                self.skipped = skipped
            if is_chosen(str(image)):
                yield Graph(
                    id=str(image),
                    file_names=self._images[image],
                    classes=tuple(int(class_of[row]) for row in kept),
                    phrases=tuple(
                        f"{attributes[objects.attribute[row]]} {names[objects.name[row]]}"
                        if objects.attribute[row] >= 0
                        else names[objects.name[row]]
                        for row in kept
                    ),
                    relations=inside,
                )


class _Grouped:
    """The rows of a column by its values.

    Args:
        values: int64 [rows].
    """

    def __init__(self, values: npt.NDArray[np.int64]) -> None:
        self._order = np.argsort(values, kind="stable")
        self._values = values[self._order]

    def _range(self, value: int) -> tuple[int, int]:
        start, end = np.searchsorted(self._values, [value, value + 1])
        return int(start), int(end)

    def rows(self, value: int) -> list[int]:
        """Return the rows with a value, in ascending order."""
        return self._order[slice(*self._range(value))].tolist()

    def count(self, value: int) -> int:
        start, end = self._range(value)
        return end - start


def _indices(kinds: _Kinds, vocabulary: Mapping[str, int]) -> npt.NDArray[np.int32]:
    """Return the index in the vocabulary of each item, 0 for one that is not in it."""
    of_text = np.array([vocabulary.get(text, 0) for text in kinds.strings.texts] or [0], dtype=np.int32)
    return of_text[np.asarray(kinds.of)]


def read_aliases(file: Path) -> dict[str, str]:
    """Return the aliases of a file whose lines are comma-separated names, of which the first replaces the others.

    Raises:
        ValueError: the file is not text in the encoding of its byte order mark, or in UTF-8.
    """
    aliases: dict[str, str] = {}
    for line in read_text(file).splitlines():
        first, *others = [_clean(name) for name in line.split(",")]
        aliases |= {other: first for other in others if other and first}
    return aliases


class _Strings:
    """Strings as numbers in the order of their first use, and the number of uses of each."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.counts: Counter[int] = Counter()

    def add(self, text: str) -> int:
        number = self.numbers.setdefault(text, len(self.numbers))
        self.counts[number] += 1
        return number

    @property
    def texts(self) -> list[str]:
        return list(self.numbers)


class _Kinds:
    """What each item of a sequence is (the class of an object, the predicate of a relation): its synset, else its name.

    Part of the source lacks synsets: an item without one has the most frequent synset of its name (ties in alphabetical
    order), or the name itself where nothing of that name has a synset. `settle` decides it, after the last item.
    """

    def __init__(self) -> None:
        self.strings, self.of = _Strings(), array("i")
        self._unsettled: dict[str, array[int]] = {}  # items without a synset, by name
        self._synsets: dict[str, Counter[str]] = {}

    def add(self, name: str, synset: str) -> None:
        if synset:
            self._synsets.setdefault(name, Counter())[synset] += 1
        else:
            self._unsettled.setdefault(name, array("q")).append(len(self.of))
        self.of.append(self.strings.add(synset) if synset else -1)

    def settle(self) -> dict[str, int]:
        """Decide what the items without a synset are, and return how many got a synset or only a name.

        The counts are empty where no item has a synset: then names are what the source goes by.
        """
        counts: Counter[str] = Counter()
        for name, items in self._unsettled.items():
            synsets = self._synsets.get(name, Counter())
            kind = min(synsets, key=lambda synset: (-synsets[synset], synset), default=name)
            counts["given that of their name" if synsets else "known by name"] += len(items)
            for item in items:
                self.of[item] = self.strings.add(kind)
        return dict(sorted(counts.items())) if self._synsets else {}


class _Objects:
    """All objects, as columns; `rows` maps an object's id, and the ids that were merged into it, to its row."""

    def __init__(self) -> None:
        self.classes, self.names, self.attributes = _Kinds(), _Strings(), _Strings()
        self.image, self.name, self.attribute = array("q"), array("i"), array("i")
        self.rows: dict[int, int] = {}
        self._merged: dict[int, int] = {}

    def add(self, id: int, merged: Iterable[int], image: int, name: str, synset: str) -> None:
        row = self.rows[id] = len(self.image)
        for other in merged:
            self._merged.setdefault(other, row)
        self.image.append(image)
        self.classes.add(name, synset)
        self.name.append(self.names.add(name))
        self.attribute.append(-1)

    def forget_ids(self) -> None:
        """Free the memory of the ids, after the last `find`."""
        self.rows, self._merged = {}, {}

    def find(self, item: Any, image: int) -> int | None:
        """Return the row of the object that an item of an image names, by its id or by one that is the same object."""
        id = _id(item, "object_id")
        for same in () if id is None else (id, *_merged_ids(item)):
            row = self.rows.get(same, self._merged.get(same))
            if row is not None and self.image[row] == image:
                return row
        return None


class _Relations:
    """All relations between known objects, as columns; subject and object are rows of `_Objects`."""

    def __init__(self) -> None:
        self.predicates = _Kinds()
        self.subject, self.object = array("q"), array("q")

    def add(self, subject: int, predicate: str, synset: str, object: int) -> None:
        self.subject.append(subject)
        self.predicates.add(predicate, synset)
        self.object.append(object)


def _read_images(file: Path, rejected: Rejections) -> dict[int, tuple[str, ...]]:
    """Return the paths where each image's file may be, by id."""
    images: dict[int, tuple[str, ...]] = {}
    for number, entry in enumerate(read_json_list(file)):
        id = _id(entry, "image_id")
        if id is None:
            rejected.append(Rejected("image", f"entry {number}", "malformed", f"expected an image_id: {_short(entry)}"))
        elif id in images:
            rejected.append(Rejected("image", str(id), "duplicate id", f"the id is repeated in entry {number}"))
        else:
            url = entry.get("url")
            url = url if is_text(url) else ""
            parts = url.split("?")[0].rstrip("/").split("/")[-2:]
            images[id] = tuple(dict.fromkeys([f"{id}.jpg", parts[-1], "/".join(parts)])) if url else (f"{id}.jpg",)
    return images


def _read_objects(file: Path, images: Mapping[int, Any], keep: Filter, rejected: Rejections) -> _Objects:
    objects = _Objects()
    for image, item in _items(file, "objects", "object", rejected):
        id = _id(item, "object_id")
        name = _name(item)
        if id is None:
            rejected.append(Rejected("object", f"of image {image}", "malformed", f"expected an id: {_short(item)}"))
        elif id in objects.rows:
            rejected.append(Rejected("object", str(id), "duplicate id", f"the id is repeated in image {image}"))
        elif image not in images:
            rejected.append(Rejected("object", str(id), "unknown image", f"no image data of image {image}"))
        elif not name:
            rejected.append(Rejected("object", str(id), "no name", f"expected a name: {_short(item)}"))
        else:
            name = keep.object_aliases.get(name, name)
            objects.add(id, _merged_ids(item), image, name, _synset(item, keep.by))
    return objects


def _read_attributes(file: Path, objects: _Objects, rejected: Rejections) -> None:
    """Set the first attribute of each known object."""
    for image, item in _items(file, "attributes", "attribute", rejected):
        id = _id(item, "object_id")
        listed = (item.get("attributes") or []) if isinstance(item, dict) else None  # many objects have none
        label = f"of image {image}" if id is None else str(id)
        if id is None or not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            detail = f"expected an object_id and a list of attributes: {_short(item)}"
            rejected.append(Rejected("attribute", label, "malformed", detail))
            listed = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
        text = next(filter(None, map(_clean, listed)), "")
        row = objects.find(item, image)
        if row is not None and text and objects.attribute[row] < 0:
            objects.attribute[row] = objects.attributes.add(text)
        elif row is None and text and id is not None:
            detail = f"image {image} has no object {id}, which is {text!r}"
            rejected.append(Rejected("attribute", label, "unknown object", detail))


def _read_relations(file: Path, objects: _Objects, keep: Filter, rejected: Rejections) -> _Relations:
    relations = _Relations()
    for image, item in _items(file, "relationships", "relation", rejected):
        is_object = isinstance(item, dict)
        label = str((_id(item, "relationship_id") if is_object else None) or f"of image {image}")
        ends = [_id(item.get(end), "object_id") for end in ("subject", "object")] if is_object else [None, None]
        predicate = _clean(item.get("predicate")) if is_object else ""
        if None in ends or not predicate:
            detail = f"expected subject, predicate and object: {_short(item)}"
            rejected.append(Rejected("relation", label, "malformed", detail))
            continue
        rows = [objects.find(item[end], image) for end in ("subject", "object")]
        if None in rows:
            rejected.append(
                Rejected("relation", label, "unknown object", f"image {image} lacks one of the objects {ends}")
            )
        elif rows[0] == rows[1]:
            rejected.append(
                Rejected("relation", label, "with itself", f"object {ends[0]} is related to itself: {predicate}")
            )
        else:
            predicate = keep.predicate_aliases.get(predicate, predicate)
            relations.add(rows[0] or 0, predicate, _synset(item, keep.by), rows[1] or 0)
    return relations


def _items(file: Path, key: str, what: str, rejected: Rejections) -> Iterator[tuple[int, Any]]:
    """Yield (image id, item) for every item of every image's list `key`.

    Raises:
        ValueError: no entry has such a list: it is another of Visual Genome's files.
    """
    number, usable, first = -1, 0, ""
    for number, entry in enumerate(read_json_list(file)):
        image = _id(entry, "image_id")
        items = entry.get(key) if isinstance(entry, dict) else None
        if image is None or not isinstance(items, list):
            detail = f"expected an object with image_id and a list {key!r}: {_short(entry)}"
            rejected.append(Rejected(what, f"entry {number}", "malformed", detail))
            first = first or _short(entry)
            continue
        usable += 1
        for item in items:
            yield image, item
    if first and not usable:
        raise ValueError(
            f"{file}: expected entries with image_id and a list {key!r}, got {number + 1} without, such as {first}: "
            f"give Visual Genome's {key}.json"
        )


def _vocabulary(kinds: _Kinds, max_size: int, given: Sequence[str] | None) -> dict[str, int]:
    """Return the index of each kept string: the given ones, or the most frequent (ties in alphabetical order)."""
    if given is not None:
        return {text: index for index, text in enumerate(given)}
    strings = kinds.strings
    ranked = sorted(strings.texts, key=lambda text: (-strings.counts[strings.numbers[text]], text))
    return {text: index for index, text in enumerate([NONE, *ranked[:max_size]])}


def _id(entry: Any, key: str) -> int | None:
    """Return an entry's id, stored as `id` in version 1.0 and as `key` in later versions."""
    return as_integer(entry.get(key, entry.get("id"))) if isinstance(entry, dict) else None


def _merged_ids(item: Any) -> list[int]:
    """Return the ids that versions 1.2 and later have merged into an object."""
    ids = item.get("merged_object_ids") if isinstance(item, dict) else None
    return [id for id in map(as_integer, ids) if id is not None] if isinstance(ids, list) else []


def _name(item: Any) -> str:
    """Return an object's first name, from `names` or `name`."""
    if not isinstance(item, dict):
        return ""
    names = item.get("names", item.get("name"))
    return next(filter(None, map(_clean, names if isinstance(names, list) else [names])), "")


def _synset(item: Mapping[str, Any], by: By) -> str:
    """Return the first synset; empty if there is none or names are used."""
    synsets = item.get("synsets") if by == "synset" else None
    return next(filter(None, map(_clean, synsets)), "") if isinstance(synsets, list) else ""


def _clean(text: Any) -> str:
    return " ".join(text.lower().split()) if is_text(text) else ""


def _short(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def rows(graphs: Iterable[tuple[Graph, CheckedImage]]) -> Iterator[Row]:
    """Yield rows of kind `scene_graphs` from graphs and their checked image files."""
    for graph, checked in graphs:
        yield {
            **checked.row(graph.id),
            "objects": [
                {"phrase": phrase, "class": number} for phrase, number in zip(graph.phrases, graph.classes, strict=True)
            ],
            "relations": [{"subject": s, "predicate": p, "object": o} for s, p, o in graph.relations],
        }


@dataclass(frozen=True)
class GraphPart:
    """Scene graphs of images whose files are in a folder."""

    folder: Folder
    graphs: tuple[Graph, ...]

    def rows(self, reading: Reading) -> Iterator[Row]:
        return rows(reading.files(self.folder, self.graphs))


class VisualGenome(Source):
    name = "visual-genome"
    help = "scene graphs: images and four files in Visual Genome's layout"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
        for name in ("objects", "attributes", "relationships", "image-data"):
            file = f"{name.replace('-', '_')}.json"
            parser.add_argument(f"--{name}", required=True, metavar="FILE", help=f"Visual Genome's {file}")
        parser.add_argument(
            "--num-predicates",
            type=int,
            default=114,
            metavar="N",
            help="most frequent predicates to keep (default: 114)",
        )
        parser.add_argument(
            "--num-classes",
            type=int,
            default=55,
            metavar="N",
            help="most frequent object classes to keep (default: 55)",
        )
        parser.add_argument(
            "--by",
            choices=("synset", "name"),
            default="synset",
            help="what defines an object's class (default: synset)",
        )
        parser.add_argument(
            "--object-aliases", metavar="FILE", help="object_alias.txt, object names to merge (default: none)"
        )
        parser.add_argument(
            "--predicate-aliases", metavar="FILE", help="relationship_alias.txt, predicates to merge (default: none)"
        )
        add_val_fraction(parser)
        parser.add_argument(
            "--vocabulary",
            metavar="DIR",
            help="scene graph shards whose predicates and classes to use (default: the most frequent ones)",
        )

    def inputs(self) -> Inputs:
        options, fraction = self.options, val_fraction_of(self.options)
        for name in ("num_predicates", "num_classes"):
            if (number := getattr(options, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {number}")
        aliases = [file for file in (options.object_aliases, options.predicate_aliases) if file]
        choices = {
            "num_predicates": options.num_predicates,
            "num_classes": options.num_classes,
            "by": options.by,
            "val_share": fraction,
        }
        if self._vocabulary:
            choices["vocabulary"] = self._vocabulary
        return Inputs([*map(str, vars(self._files).values()), *aliases], [options.images], choices)

    def folders(self) -> Sequence[str]:
        return ["."] if self.options.val_fraction is None else ["train", "val"]

    @property
    def _files(self) -> Files:
        options = self.options
        return Files(*map(Path, (options.objects, options.attributes, options.relationships, options.image_data)))

    @cached_property
    def _vocabulary(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The predicates and classes of the shards that were given."""
        if not self.options.vocabulary:
            return None
        Folder.connect(self.options.vocabulary)
        words = Dataset.open(self.options.vocabulary, "scene_graphs").vocabulary
        return words["predicates"], words["classes"]

    def splits(self, work: Work) -> Iterable[Split]:
        options, images = self.options, Folder.at(self.options.images)
        keep = Filter(
            predicates=options.num_predicates,
            classes=options.num_classes,
            by=options.by,
            object_aliases=read_aliases(Path(options.object_aliases)) if options.object_aliases else {},
            predicate_aliases=read_aliases(Path(options.predicate_aliases)) if options.predicate_aliases else {},
            vocabulary=self._vocabulary,
        )
        rejected = RejectedLog()
        found = SceneGraphs(self._files, keep, rejected)
        for name in self.folders():
            yield graph_split(name, images, found, rejected, work.limit, options.val_fraction)


def graph_split(
    name: str,
    images: Folder,
    found: SceneGraphs,
    rejected: RejectedLog,
    limit: int | None,
    val_fraction: float | None = None,
) -> Split:
    """Return a data set of the graphs that were found.

    Args:
        rejected: what of the source cannot be used. It belongs to no part, and is reported with all but `val`.
        limit: number of graphs that are taken, at most.
        val_fraction: take the images that are held out for `val`, and the others for another name; None takes all.

    Raises:
        ValueError: there is no graph.
    """
    is_val = val_fraction is not None and name == "val"

    def is_chosen(id: str) -> bool:
        return val_fraction is None or is_held_out(id, val_fraction) == is_val

    if not found.ids:
        raise ValueError(f"no image has an object of a kept class: {summary(rejected.tally)}")
    count = sum(is_chosen(str(id)) for id in found.ids)
    if not count:
        raise ValueError(f"--val-fraction {val_fraction:g} leaves none of {len(found.ids)} images for {name}")
    words = {"classes": found.classes, "predicates": found.predicates}
    split = Split(name, "scene_graphs", [], words, count if limit is None else min(count, limit))
    if not is_val:
        split.rejected = rejected

    def parts() -> Iterator[Part]:
        graphs = found.graphs(is_chosen, report=not is_val)
        yield from parts_of(graphs, partial(GraphPart, images), limit)
        if not is_val:
            skipped = {f"{LEFT_OUT}{what}": number for what, number in sorted(found.skipped.items())}
            split.left_out |= skipped | found.without_synset

    split.parts = parts()
    return split
