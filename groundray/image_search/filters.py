"""Filters of a search: which images of a pool may be found, by their size, id or label.

    filter = Filter.parse(["width>=640", "orientation=landscape", "id=birds/*", "label!=crow"])

A condition is FIELD OPERATOR VALUE. `width` and `height`, in pixels, are compared by >=, <=, >, <, = and !=; the others
by = and !=. `orientation` is landscape, portrait or square. An `id` is a pattern that the whole id matches: * stands
for any characters, ? for one. `label` is the name of a class: of the image, or of an object in its scene graph.

An image may be found if it meets all conditions; of several = of one field it needs to meet one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int32, Int64

from groundray.data.ahead import map_ahead
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.data.shards import READS
from groundray.image_search.errors import BadQuery
from groundray.image_search.image_ids import ImageIds
from groundray.storage.file_names import is_encodable

pc: Any = pyarrow.compute  # its functions are made when it is imported
CONDITION = re.compile(r"\s*([a-z]+)\s*(>=|<=|!=|=|>|<)(?!=)\s*(.*\S)\s*", re.DOTALL)
COMPARISONS = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
SIZES = ("width", "height")
FIELDS = (*SIZES, "orientation", "id", "label")
ORIENTATIONS = {"landscape": operator.gt, "portrait": operator.lt, "square": operator.eq}  # of width and height
LABELS = {"labelled_images": "label", "scene_graphs": "objects"}  # the column with classes, by kind of data set
MAX_CONDITIONS, MAX_CHARACTERS = 16, 300
MAX_PIXELS = 2**31 - 1


@dataclass(frozen=True)
class Condition:
    """A condition on an image: a field, an operator and a value."""

    field: str
    operator: str
    value: str

    @staticmethod
    def parse(text: str) -> Condition:
        """Return the condition that a text states.

        Raises:
            BadQuery: it states none.
        """
        parts = CONDITION.fullmatch(text) if len(text) <= MAX_CHARACTERS and is_encodable(text) else None
        if parts is None:
            raise BadQuery(
                "filter: expected a condition such as width>=640, orientation=landscape, id=birds/* or label=crow, got "
                f"{text[:80]!r}"
            )
        field, compared, value = parts.groups()
        if field not in FIELDS:
            raise BadQuery(f"filter: expected a condition on {', '.join(FIELDS)}, got one on {field!r}")
        if field not in SIZES and compared not in ("=", "!="):
            raise BadQuery(f"filter: expected {field}= or {field}!=, got {field}{compared}")
        if field in SIZES and not (value.isascii() and value.isdigit() and int(value) <= MAX_PIXELS):
            raise BadQuery(f"filter: expected a number of pixels after {field}{compared}, got {value[:80]!r}")
        if field == "orientation" and value not in ORIENTATIONS:
            raise BadQuery(f"filter: expected orientation={', '.join(ORIENTATIONS)}, got {value[:80]!r}")
        return Condition(field, compared, value)

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{self.value}"


@dataclass(frozen=True)
class Filter:
    """Conditions on an image. With none, every image meets them."""

    conditions: tuple[Condition, ...] = ()

    @staticmethod
    def parse(texts: Iterable[str]) -> Filter:
        """Return the filter of conditions that are given as texts; empty ones are left out.

        Raises:
            BadQuery: a text states no condition, or there are too many.
        """
        conditions = tuple(dict.fromkeys(Condition.parse(text) for text in texts if text.strip()))
        if len(conditions) > MAX_CONDITIONS:
            raise BadQuery(f"filter: expected at most {MAX_CONDITIONS} conditions, got {len(conditions)}")
        return Filter(conditions)

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def accepted(self, columns: Columns) -> Bool[np.ndarray, " image"]:
        """Return which images meet the conditions. Time and memory are in proportion to the pool; ids stay bytes.

        Raises:
            BadQuery: the images have no labels, or none of this name.
        """
        accepted = np.ones(len(columns.ids), bool)
        for field in FIELDS:
            named = [condition for condition in self.conditions if condition.field == field]
            either = [columns.meeting(condition) for condition in named if condition.operator == "="]
            if either:
                accepted &= np.logical_or.reduce(either)
            for condition in named:
                if condition.operator != "=":
                    accepted &= columns.meeting(condition)
        return accepted


EVERYTHING = Filter()


class Labels:
    """The classes of the images of a data set, read on first use: 8 bytes for each label and image.

    Args:
        dataset: of kind `labelled_images` or `scene_graphs`; another kind has no labels.
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._read: tuple[Int64[np.ndarray, " label"], Int32[np.ndarray, " label"]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes; none if the images have no labels."""
        return self._dataset.vocabulary.get("classes", ()) if self._dataset.kind in LABELS else ()

    def having(self, name: str) -> Bool[np.ndarray, " image"]:
        """Return which images have a label.

        Raises:
            BadQuery: the images have no labels, or none of this name.
        """
        if not self.names:
            kinds = " and ".join(LABELS)
            raise BadQuery(f"filter: expected shards of kind {kinds} for a label, got {self._dataset.kind}")
        if name not in self.names:
            shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            raise BadQuery(f"filter: expected one of the {len(self.names)} labels {shown}, got {name[:80]!r}")
        if self._read is None:
            self._read = self._columns()
        rows, classes = self._read
        found = np.zeros(self._dataset.rows, bool)
        found[rows[classes == self.names.index(name)]] = True
        return found

    def _columns(self) -> tuple[Int64[np.ndarray, " label"], Int32[np.ndarray, " label"]]:
        """Return the row and the class of each label."""
        column, rows, classes, first = LABELS[self._dataset.kind], [], [], 0
        for table in _groups(self._dataset, column):
            values = table[column].combine_chunks()
            own = np.arange(first, first + len(values))
            first += len(values)
            if pa.types.is_list(values.type):
                own = np.repeat(own, pc.list_value_length(values).to_numpy())
                values = values.flatten().field("class")
            rows.append(own)
            classes.append(values.to_numpy().astype(np.int32, copy=False))
        return np.concatenate(rows), np.concatenate(classes)


@dataclass(frozen=True)
class Columns:
    """What conditions are compared with: a value for each image of a pool."""

    ids: ImageIds
    sizes: Int32[np.ndarray, "image 2"]
    labels: Labels

    def meeting(self, condition: Condition) -> Bool[np.ndarray, " image"]:
        """Return which images meet one condition.

        Raises:
            BadQuery: the images have no labels, or none of this name.
        """
        field, compared, value = condition.field, condition.operator, condition.value
        if field in SIZES:
            return COMPARISONS[compared](self.sizes[:, SIZES.index(field)], int(value))
        if field == "orientation":
            found = ORIENTATIONS[value](self.sizes[:, 0], self.sizes[:, 1])
        elif field == "id":
            found = self.ids.matching(value)
        else:
            found = self.labels.having(value)
        return found if compared == "=" else ~found


def _groups(dataset: Dataset, column: str) -> Iterator[pa.Table]:
    """Yield a column of the row groups, read in parallel."""
    with ThreadPoolExecutor(READS) as pool:
        yield from map_ahead(
            pool, lambda group: read_group(dataset, group, [column]), range(len(dataset.groups)), 2 * READS
        )
