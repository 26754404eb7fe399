"""Visual Genome's scene graphs: which objects an image has, what is said of them, and how they are related.

Four JSON files, each a list with an entry an image, in the layouts of versions 1.0 (`id`, `name`) and later
(`image_id`, `object_id`, `names`, `synsets`). The files are read as streams, and what they say is kept as numbers.
"""

from __future__ import annotations

import reprlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ijson

from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.rejected import Rejected

NONE = "none"  # what index 0 of predicates and classes stands for
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
    """What is kept.

    Attributes:
        predicates, classes: how many of each, the most frequent ones.
        max_objects: of an image; those that take part in more kept relations stay first.
        by: what makes two objects the same class (and two relations the same predicate): their synset, or where there
            is none their name; or always their name.
        object_aliases, predicate_aliases: the name that another name is merged into.
        vocabulary: predicates and classes of other shards, to be used instead of the most frequent ones.
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
        id: of the image.
        file_names: where its file may be, in the order of trying.
        classes: class of each object, an index of `Graphs.classes`.
        phrases: attribute and name of each object.
        relations: (subject, predicate, object) with places in `classes`, and an index of `Graphs.predicates`.
    """

    id: str
    file_names: tuple[str, ...]
    classes: tuple[int, ...]
    phrases: tuple[str, ...]
    relations: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Graphs:
    """What the files hold: graphs in the order of image ids, vocabularies (index 0 = none), and what is left out."""

    graphs: tuple[Graph, ...]
    classes: tuple[str, ...]
    predicates: tuple[str, ...]
    skipped: dict[str, int]
    rejected: tuple[Rejected, ...]


def read_graphs(files: Files, keep: Filter | None = None) -> Graphs:
    """The scene graphs of the files; no image is opened yet.

    Raises:
        ValueError: a file is no list of JSON objects; the message names file and place.
    """
    keep = keep or Filter()
    rejected: list[Rejected] = []
    images = _read_images(files.image_data, rejected)
    objects = _read_objects(files.objects, images, keep, rejected)
    _read_attributes(files.attributes, objects)
    relations = _read_relations(files.relationships, objects, keep, rejected)
    classes = _vocabulary(objects.classes, keep.classes, keep.vocabulary and keep.vocabulary[1])
    predicates = _vocabulary(relations.predicates, keep.predicates, keep.vocabulary and keep.vocabulary[0])
    skipped: Counter[str] = Counter()
    graphs = tuple(_graphs(images, objects, relations, classes, predicates, keep, skipped, rejected))
    return Graphs(graphs, tuple(classes), tuple(predicates), dict(sorted(skipped.items())), tuple(rejected))


def read_aliases(file: Path) -> dict[str, str]:
    """The aliases of a file with a line of comma-separated names each, of which the first stands for all."""
    aliases: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        first, *others = [_clean(name) for name in line.split(",")]
        aliases |= {other: first for other in others if other and first}
    return aliases


class _Words:
    """Texts as numbers, in the order of their first use, and how often each was used."""

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


class _Objects:
    """All objects, as columns; `places` finds an object by its id."""

    def __init__(self) -> None:
        self.classes, self.names, self.attributes = _Words(), _Words(), _Words()
        self.image, self.klass, self.name, self.attribute = array("q"), array("i"), array("i"), array("i")
        self.places: dict[int, int] = {}

    def add(self, id: int, image: int, klass: str, name: str) -> None:
        self.places[id] = len(self.image)
        self.image.append(image)
        self.klass.append(self.classes.add(klass))
        self.name.append(self.names.add(name))
        self.attribute.append(-1)


class _Relations:
    """All relations between known objects, as columns; subject and object are places in `_Objects`."""

    def __init__(self) -> None:
        self.predicates = _Words()
        self.subject, self.predicate, self.object = array("q"), array("i"), array("q")

    def add(self, subject: int, predicate: str, object: int) -> None:
        self.subject.append(subject)
        self.predicate.append(self.predicates.add(predicate))
        self.object.append(object)


def _entries(file: Path) -> Iterator[Any]:
    """The entries of a JSON list, one after the other."""
    with file.open("rb") as stream:
        first = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if first != b"[":
            raise ValueError(f"{file}: expected a JSON list with an entry an image, found {first!r} at its start")
        stream.seek(0)
        place = 0
        try:
            for entry in ijson.items(stream, "item", use_float=True):
                place += 1
                yield entry
        except (ijson.JSONError, UnicodeDecodeError) as error:
            said = str(error).strip().splitlines()[0]
            raise ValueError(f"{file} is not JSON after {place} entries, before byte {stream.tell()}: {said}") from None


def _read_images(file: Path, rejected: list[Rejected]) -> dict[int, tuple[str, ...]]:
    """Where the file of each image may be."""
    images: dict[int, tuple[str, ...]] = {}
    for place, entry in enumerate(_entries(file)):
        id = _id(entry, "image_id")
        if id is None:
            rejected.append(Rejected("image", f"entry {place}", "malformed", f"expected an image_id: {_short(entry)}"))
        elif id in images:
            rejected.append(Rejected("image", str(id), "duplicate id", f"the id stands again in entry {place}"))
        else:
            url = entry.get("url")
            parts = str(url or "").split("?")[0].rstrip("/").split("/")[-2:]
            images[id] = tuple(dict.fromkeys([f"{id}.jpg", parts[-1], "/".join(parts)])) if url else (f"{id}.jpg",)
    return images


def _read_objects(file: Path, images: Mapping[int, Any], keep: Filter, rejected: list[Rejected]) -> _Objects:
    found = _Objects()
    for image, item in _items(file, "objects", "object", rejected):
        id = _id(item, "object_id")
        name = _name(item)
        if id is None:
            rejected.append(Rejected("object", f"of image {image}", "malformed", f"expected an id: {_short(item)}"))
        elif id in found.places:
            rejected.append(Rejected("object", str(id), "duplicate id", f"the id stands again in image {image}"))
        elif image not in images:
            rejected.append(Rejected("object", str(id), "unknown image", f"no image data of image {image}"))
        elif not name:
            rejected.append(Rejected("object", str(id), "no name", f"expected a name: {_short(item)}"))
        else:
            name = keep.object_aliases.get(name, name)
            found.add(id, image, _synset(item, keep.by) or name, name)
    return found


def _read_attributes(file: Path, objects: _Objects) -> None:
    """Note the first attribute of each object that is known."""
    for _, item in _items(file, "attributes", "object", []):
        id = _id(item, "object_id")
        said = item.get("attributes") if isinstance(item, dict) else None
        texts = [_clean(text) for text in said if isinstance(text, str)] if isinstance(said, list) else []
        place = objects.places.get(id) if id is not None else None
        if place is not None and objects.attribute[place] < 0 and any(texts):
            objects.attribute[place] = objects.attributes.add(next(filter(None, texts)))


def _read_relations(file: Path, objects: _Objects, keep: Filter, rejected: list[Rejected]) -> _Relations:
    found = _Relations()
    for image, item in _items(file, "relationships", "relation", rejected):
        known = isinstance(item, dict)
        shown = str((_id(item, "relationship_id") if known else None) or f"of image {image}")
        ends = [_id(item.get(end), "object_id") for end in ("subject", "object")] if known else [None, None]
        predicate = _clean(item.get("predicate")) if known else ""
        if None in ends or not predicate:
            detail = f"expected subject, predicate and object: {_short(item)}"
            rejected.append(Rejected("relation", shown, "malformed", detail))
            continue
        places = [objects.places.get(end) for end in ends if end is not None]
        if None in places or any(objects.image[place] != image for place in places if place is not None):
            rejected.append(Rejected("relation", shown, "unknown object", f"image {image} has not both of {ends}"))
        elif places[0] == places[1]:
            rejected.append(Rejected("relation", shown, "with itself", f"object {ends[0]} {predicate} itself"))
        else:
            predicate = keep.predicate_aliases.get(predicate, predicate)
            found.add(places[0] or 0, _synset(item, keep.by) or predicate, places[1] or 0)
    return found


def _items(file: Path, key: str, what: str, rejected: list[Rejected]) -> Iterator[tuple[int, Any]]:
    """(image id, item) of every item in every image's list."""
    for place, entry in enumerate(_entries(file)):
        image = _id(entry, "image_id")
        items = entry.get(key) if isinstance(entry, dict) else None
        if image is None or not isinstance(items, list):
            detail = f"expected an object with image_id and a list {key!r}: {_short(entry)}"
            rejected.append(Rejected(what, f"entry {place}", "malformed", detail))
            continue
        for item in items:
            yield image, item


def _vocabulary(words: _Words, most: int, given: Sequence[str] | None) -> dict[str, int]:
    """The index of each kept word: of the given ones, or of the most frequent (ties in the order of the alphabet)."""
    if given is not None:
        return {word: index for index, word in enumerate(given)}
    texts = words.texts
    ranked = sorted(texts, key=lambda text: (-words.counts[words.numbers[text]], text))
    return {word: index for index, word in enumerate([NONE, *ranked[:most]])}


def _graphs(
    images: Mapping[int, tuple[str, ...]],
    objects: _Objects,
    relations: _Relations,
    classes: Mapping[str, int],
    predicates: Mapping[str, int],
    keep: Filter,
    skipped: Counter[str],
    rejected: list[Rejected],
) -> Iterator[Graph]:
    """The graph of each image that has a kept object; what is left out is counted."""
    class_of = [classes.get(text, 0) for text in objects.classes.texts]
    predicate_of = [predicates.get(text, 0) for text in relations.predicates.texts]
    names, attributes = objects.names.texts, objects.attributes.texts

    of_image: dict[int, list[int]] = {}
    for place, image in enumerate(objects.image):
        if class_of[objects.klass[place]]:
            of_image.setdefault(image, []).append(place)
        else:
            skipped["objects of other classes"] += 1
    related: dict[int, dict[tuple[int, int, int], None]] = {}
    for place, subject in enumerate(relations.subject):
        triplet = (subject, predicate_of[relations.predicate[place]], relations.object[place])
        if not triplet[1]:
            skipped["relations of other predicates"] += 1
        elif not all(class_of[objects.klass[end]] for end in (triplet[0], triplet[2])):
            skipped["relations of dropped objects"] += 1
        elif triplet in related.setdefault(objects.image[subject], {}):
            skipped["relations said twice"] += 1
        else:
            related[objects.image[subject]][triplet] = None

    for image in sorted(images):
        places = of_image.get(image, [])
        if not places:
            rejected.append(Rejected("image", str(image), "no object", "none of its objects is of a kept class"))
            continue
        triplets = related.get(image, {})
        taking_part = Counter(end for subject, _, object in triplets for end in (subject, object))
        kept = sorted(sorted(places, key=lambda place: -taking_part[place])[: keep.max_objects])
        index = {place: i for i, place in enumerate(kept)}
        inside = tuple((index[s], p, index[o]) for s, p, o in triplets if s in index and o in index)
        skipped["objects beyond the most an image may have"] += len(places) - len(kept)
        skipped["relations of dropped objects"] += len(triplets) - len(inside)
        yield Graph(
            id=str(image),
            file_names=images[image],
            classes=tuple(class_of[objects.klass[place]] for place in kept),
            phrases=tuple(
                f"{attributes[objects.attribute[place]]} {names[objects.name[place]]}"
                if objects.attribute[place] >= 0
                else names[objects.name[place]]
                for place in kept
            ),
            relations=inside,
        )


def _id(entry: Any, key: str) -> int | None:
    """An entry's id, under its name of version 1.0 or of later ones."""
    value = entry.get(key, entry.get("id")) if isinstance(entry, dict) else None
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:  # as many as 64 bits hold
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _name(item: Any) -> str:
    """An object's first name, from `names` or `name`."""
    if not isinstance(item, dict):
        return ""
    said = item.get("names", item.get("name"))
    return next(filter(None, map(_clean, said if isinstance(said, list) else [said])), "")


def _synset(item: Mapping[str, Any], by: By) -> str:
    """The first synset, where that is what counts."""
    said = item.get("synsets") if by == "synset" else None
    return next(filter(None, map(_clean, said)), "") if isinstance(said, list) else ""


def _clean(text: Any) -> str:
    return " ".join(text.lower().split()) if isinstance(text, str) else ""


def _short(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def rows(graphs: Iterable[tuple[Graph, CheckedImage]]) -> Iterator[dict[str, Any]]:
    """Rows of kind `scene_graphs` of graphs and their checked image files."""
    for graph, checked in graphs:
        yield {
            **checked.row(graph.id),
            "objects": [
                {"phrase": phrase, "class": number} for phrase, number in zip(graph.phrases, graph.classes, strict=True)
            ],
            "relations": [{"subject": s, "predicate": p, "object": o} for s, p, o in graph.relations],
        }
