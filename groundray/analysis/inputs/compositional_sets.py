"""Published sets that test composition: which caption of an image is true, where others have nearly the same words.

    sugarcrepe   add_att.json ... swap_obj.json: {"0": {filename, caption, negative_caption}} (Hsieh et al. 2023)
    aro          visual_genome_relation.json, visual_genome_attribution.json: [{image_path, bbox_x, bbox_y, bbox_w,
                 bbox_h, true_caption, false_caption, relation_name | attributes}]; coco_order.json,
                 flickr30k_order.json: [{image, caption_options}], the true one first (Yuksekgonul et al. 2023)
    winoground   examples.jsonl, or the hub's Parquet: image_0, image_1, caption_0, caption_1, collapsed_tag
                 (Thrush et al. 2022)
    vsr          test.jsonl, or others: {image, caption, label, relation} (Liu et al. 2023)

An entry that cannot be used is left out, counted and named; a file without a usable entry is an error.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow.parquet as pq

from groundray.data.image_decoder import UnusableImage, decode
from groundray.data.sources.image_files import read_image
from groundray.data.sources.json_values import as_integer, is_text
from groundray.storage.folder import Folder

Task = Literal["choice", "pairs", "truth"]
Entry = dict[str, Any]
CATEGORY_FILES = tuple(f"{how}_{what}" for how in ("add", "replace", "swap") for what in ("obj", "att", "rel", "ent"))
ORDER = ("coco_order", "flickr30k_order")
RELATION, ATTRIBUTION = "visual_genome_relation", "visual_genome_attribution"
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
IMAGE_FOLDERS = ("", "images/", "val2017/", "train2017/", "trainval2017/", "val2014/", "train2014/")
IMAGE_ENDINGS = ("", ".png", ".jpg")  # Winoground's examples.jsonl names images without
NAMED = 20  # entries that a report names


@dataclass(frozen=True)
class Picture:
    """An image of an entry.

    Attributes:
        key: equal for equal pictures of a set.
        read: returns its encoded bytes, or raises UnusableImage.
    """

    key: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Item:
    """An entry of a set.

    Attributes:
        where: its file and number, or line.
        images, captions: of task `choice` one image and its captions, the true one first; of `pairs` two of each, of
            which those with equal numbers match; of `truth` one of each.
        is_true: of `truth`, whether the caption describes the image.
    """

    where: str
    images: tuple[Picture, ...]
    captions: tuple[str, ...]
    category: str
    is_true: bool = True


@dataclass(frozen=True)
class CompositionalSet:
    """The usable entries of a set.

    Attributes:
        name: such as `sugarcrepe` or `aro_vg_relation`.
        left_out: number of other entries, by reason.
        problems: (entry, reason) of the first of them.
        notes: a line for each file that is not read.
    """

    name: str
    task: Task
    items: tuple[Item, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


class _Malformed(ValueError):
    """An entry lacks a field, or has another type in it."""


def read_sets(given: Sequence[str], images: Sequence[str] = ()) -> list[CompositionalSet]:
    """Return the sets that are given as NAME=FOLDER. ARO is up to four sets.

    Args:
        images: folders of images, searched in this order before the set's own folder and `images/` in it.

    Raises:
        FileNotFoundError: a folder has none of the set's files.
        ValueError: a name is unknown, or a file has no usable entry; the message has the first problem.
    """
    found: list[CompositionalSet] = []
    for text in given:
        name, _, place = text.partition("=")
        if name not in READERS or not place:
            raise ValueError(f"--set: expected NAME=FOLDER with a name of {', '.join(READERS)}, got {text!r}")
        folder = Folder.at(place)
        data = folder / "data"
        roots = [*map(Folder.at, images), folder, data] if folder.exists("data") else [*map(Folder.at, images), folder]
        files = dict.fromkeys(folder.names(), folder) if folder.exists() else {}
        if len(roots) > len(images) + 1:
            files = dict.fromkeys(data.names(), data) | files
        made = list(READERS[name](files, roots))
        if not made:
            raise FileNotFoundError(f"--set {name}: expected {FILES[name]} in {place}, found none")
        found += made
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--set: expected each set once, got {twice[0]} twice")
    return found


def _sugarcrepe(files: dict[str, Folder], roots: Sequence[Folder]) -> Iterator[CompositionalSet]:
    categories = [name for name in CATEGORY_FILES if f"{name}.json" in files]
    if not categories:
        return

    def item(entry: Entry, where: str, category: str) -> Item:
        captions = _text(entry, "caption"), _text(entry, "negative_caption")
        return Item(where, (_picture(roots, _text(entry, "filename")),), captions, category)

    entries = (
        (entry, where, category)
        for category in categories
        for entry, where in _json_entries(files[f"{category}.json"], f"{category}.json")
    )
    others = [name for name in files if name.endswith(".json") and name.removesuffix(".json") not in categories]
    yield _set("sugarcrepe", "choice", entries, item, [f"sugarcrepe/{name}: not read" for name in sorted(others)])


def _aro(files: dict[str, Folder], roots: Sequence[Folder]) -> Iterator[CompositionalSet]:
    def boxed(entry: Entry, where: str, category: str) -> Item:
        box = tuple(_integer(entry, name) for name in BOX)
        if min(box[2:]) < 1:
            raise _Malformed(f"expected a box of at least one pixel in bbox_w and bbox_h, got {box[2:]}")
        kind = _text(entry, "relation_name") if category == RELATION else "_".join(_texts(entry, "attributes"))
        captions = _text(entry, "true_caption"), _text(entry, "false_caption")
        return Item(where, (_picture(roots, _text(entry, "image_path"), box),), captions, kind)

    def ordered(entry: Entry, where: str, category: str) -> Item:
        captions = _texts(entry, "caption_options")
        if len(captions) < 2:
            raise _Malformed(f"expected at least two texts in caption_options, got {len(captions)}")
        return Item(where, (_picture(roots, _text(entry, "image")),), captions, "all")

    for name, short in ((RELATION, "aro_vg_relation"), (ATTRIBUTION, "aro_vg_attribution")):
        if f"{name}.json" in files:
            found = ((*entry, name) for entry in _json_entries(files[f"{name}.json"], f"{name}.json"))
            yield _set(short, "choice", found, boxed)
    for name in ORDER:
        if f"{name}.json" in files:
            found = ((*entry, name) for entry in _json_entries(files[f"{name}.json"], f"{name}.json"))
            yield _set(f"aro_{name}", "choice", found, ordered)


def _winoground(files: dict[str, Folder], roots: Sequence[Folder]) -> Iterator[CompositionalSet]:
    def item(entry: Entry, where: str, category: str) -> Item:
        pictures = entry.get("pictures") or tuple(_picture(roots, _text(entry, f"image_{at}")) for at in (0, 1))
        captions = _text(entry, "caption_0"), _text(entry, "caption_1")
        return Item(where, pictures, captions, entry.get("collapsed_tag") or "all")

    tables = sorted(name for name in files if name.endswith(".parquet"))
    if "examples.jsonl" in files:
        lines = ((*entry, "") for entry in _json_lines(files["examples.jsonl"], "examples.jsonl"))
        yield _set("winoground", "pairs", lines, item, [f"winoground/{name}: not read" for name in tables])
    elif tables:
        rows = ((*entry, "") for name in tables for entry in _table_entries(files[name], name))
        yield _set("winoground", "pairs", rows, item)


def _vsr(files: dict[str, Folder], roots: Sequence[Folder]) -> Iterator[CompositionalSet]:
    lists = sorted(name for name in files if name.endswith(".jsonl"))
    chosen = ["test.jsonl"] if "test.jsonl" in lists else lists
    if not chosen:
        return

    def item(entry: Entry, where: str, category: str) -> Item:
        label = entry.get("label")
        if label not in (0, 1):
            raise _Malformed(f"expected 0 or 1 in label, got {label!r}")
        picture = _picture(roots, _text(entry, "image"))
        return Item(where, (picture,), (_text(entry, "caption"),), _text(entry, "relation"), bool(label))

    lines = ((*entry, "") for name in chosen for entry in _json_lines(files[name], name))
    yield _set("vsr", "truth", lines, item, [f"vsr/{name}: not read" for name in lists if name not in chosen])


READERS = {"sugarcrepe": _sugarcrepe, "aro": _aro, "winoground": _winoground, "vsr": _vsr}
FILES = {
    "sugarcrepe": "add_obj.json, add_att.json, replace_obj.json, replace_att.json, replace_rel.json, swap_obj.json or "
    "swap_att.json",
    "aro": f"{RELATION}.json, {ATTRIBUTION}.json, coco_order.json or flickr30k_order.json",
    "winoground": "examples.jsonl or *.parquet",
    "vsr": "test.jsonl, or other *.jsonl",
}


def _set(
    name: str,
    task: Task,
    entries: Iterator[tuple[Any, str, str]],
    item: Callable[[Entry, str, str], Item],
    notes: Sequence[str] = (),
) -> CompositionalSet:
    """Return a set of the entries that can be used."""
    items: list[Item] = []
    problems: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    for entry, where, category in entries:
        try:
            if not isinstance(entry, dict):
                raise _Malformed(f"expected an object, got {_short(entry)}")
            items.append(item(entry, where, category))
        except _Malformed as problem:
            fields = f"; its fields are {', '.join(map(str, entry))}" if isinstance(entry, dict) else ""
            left_out["malformed"] += 1
            problems += [(where, f"{problem}{fields}")] if len(problems) < NAMED else []
    if not items:
        at, reason = problems[0] if problems else ("its files", "they hold no entry")
        raise ValueError(f"--set {name}: expected usable entries, got none: {at}: {reason}")
    return CompositionalSet(name, task, tuple(items), left_out, tuple(problems), tuple(notes))


def _json_entries(folder: Folder, name: str) -> Iterator[tuple[Any, str]]:
    """Yield the entries of a JSON list, or of an object of entries by number."""
    try:
        tree = folder.read_json(name)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder}/{name}: expected JSON, got something else ({error})") from None
    if not isinstance(tree, dict | list):
        raise ValueError(f"{folder}/{name}: expected a JSON list or object of entries, got {_short(tree)}")
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return ((entry, f"{folder}/{name} entry {number}") for number, entry in pairs)


def _json_lines(folder: Folder, name: str) -> Iterator[tuple[Any, str]]:
    """Yield the entries of a file with one JSON object a line."""
    with folder.open_input(name) as file:
        for number, line in enumerate(io.TextIOWrapper(file, "utf-8-sig", errors="replace"), start=1):
            if line.strip():
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    entry = line.strip()
                yield entry, f"{folder}/{name} line {number}"


def _table_entries(folder: Folder, name: str) -> Iterator[tuple[Any, str]]:
    """Yield the rows of a Parquet table whose pictures are in its cells, as the hub has them."""
    pictures = _TablePictures(folder, name)
    texts = [column for column in pictures.columns if not column.startswith("image_")]
    if not {"image_0", "image_1"} <= set(pictures.columns):
        raise ValueError(f"{folder}/{name}: expected columns image_0 and image_1, got {', '.join(pictures.columns)}")
    number = 0
    for group in range(pictures.groups):
        for row, entry in enumerate(pictures.read(group, texts).to_pylist()):
            own = tuple(pictures.picture(group, row, f"image_{at}") for at in (0, 1))
            yield {**entry, "pictures": own}, f"{folder}/{name} row {number}"
            number += 1


class _TablePictures:
    """Pictures in the cells of a Parquet table, of which a column of a row group is in memory."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name = folder, name
        self._held: tuple[int, str, list[Any]] | None = None
        with folder.open_input(name) as file:
            table = pq.ParquetFile(file)
            self.columns, self.groups = table.schema_arrow.names, table.num_row_groups

    def read(self, group: int, columns: Sequence[str]) -> Any:
        with self._folder.open_input(self._name) as file:
            return pq.ParquetFile(file).read_row_group(group, columns=list(columns))

    def picture(self, group: int, row: int, column: str) -> Picture:
        where = f"{self._folder}/{self._name} row group {group}, row {row}, {column}"

        def read() -> bytes:
            if self._held is None or self._held[:2] != (group, column):
                self._held = group, column, self.read(group, [column])[column].to_pylist()
            cell = self._held[2][row]
            encoded = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(encoded, bytes):
                raise UnusableImage("missing", f"{where}: expected the bytes of a picture, got {_short(cell)}")
            return encoded

        return Picture(where, read)


def _picture(roots: Sequence[Folder], name: str, box: Sequence[int] | None = None) -> Picture:
    """Return a picture of one of some folders, cut to a box (left, top, width, height) if there is one."""
    names = [f"{inner}{name}{ending}" for inner in IMAGE_FOLDERS for ending in IMAGE_ENDINGS]

    def read() -> bytes:
        for root in roots:
            try:
                encoded = read_image(root, names)
            except UnusableImage as problem:
                if problem.reason != "missing":
                    raise
            else:
                return _cut(encoded.encoded, encoded.where, box)
        places = ", ".join(map(str, roots))
        raise UnusableImage("missing", f"there is no image {name} in {places}: give its folder by --images FOLDER")

    return Picture(f"{name} {box or ''}", read)


def _cut(encoded: bytes, where: str, box: Sequence[int] | None) -> bytes:
    if box is None:
        return encoded
    left, top, width, height = box
    try:
        picture = decode(encoded)
    except UnusableImage as problem:
        raise problem.of(where) from None
    out = io.BytesIO()
    picture.crop((left, top, left + width, top + height)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _text(entry: Entry, name: str) -> str:
    value = entry.get(name)
    if not is_text(value) or not value.strip():
        raise _Malformed(f"expected text in {name}, got {_short(value)}")
    return value


def _texts(entry: Entry, name: str) -> tuple[str, ...]:
    value = entry.get(name)
    if not isinstance(value, list) or not value or not all(is_text(one) and one.strip() for one in value):
        raise _Malformed(f"expected a list of texts in {name}, got {_short(value)}")
    return tuple(value)


def _integer(entry: Entry, name: str) -> int:
    number = as_integer(entry.get(name))
    if number is None:
        raise _Malformed(f"expected a whole number in {name}, got {_short(entry.get(name))}")
    return number


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
