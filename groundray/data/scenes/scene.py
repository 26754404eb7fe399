"""Scenes: objects, their positions and their relations, a pure function of (seed, split, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from groundray.data.scenes.vocabulary import COLOURS, KINDS, SHAPES, SIZES, TEXTURES, Kind
from groundray.rng import hash64, hash_name

Option = TypeVar("Option")

SIZE = 112  # side of a scene in pixels
EXTENTS = {"small": (20, 24), "big": (38, 44)}  # range of an object's extent in pixels
MARGIN = 3  # minimum gap in pixels between objects that do not touch
KIND_FRACTION = 0.25
TOUCHING_FRACTION, INSIDE_FRACTION = 0.2, 0.2


class Dice:
    """A sequence of random draws, fixed by a key. Drawing one by one is clearer here than arrays."""

    def __init__(self, *key: int):
        self._key, self._drawn = key, 0

    def below(self, end: int) -> int:
        """Return an integer from 0 to end - 1."""
        self._drawn += 1
        return int(hash64(*self._key, self._drawn)) % end

    def between(self, first: int, last: int) -> int:
        """Return an integer from first to last, both inclusive."""
        return first + self.below(last - first + 1)

    def choose(self, options: Sequence[Option]) -> Option:
        """Return one of the options."""
        return options[self.below(len(options))]

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self.below(1_000_000) < probability * 1_000_000


@dataclass(frozen=True)
class Object:
    """An object and its square box in pixels: left, top and extent."""

    shape: str
    colour: str
    texture: str
    size: str
    x: int
    y: int
    extent: int

    @property
    def kind(self) -> Kind | None:
        """The object's named kind, or None."""
        attributes = (self.colour, self.texture)
        return next((kind for kind in KINDS if kind.shape == self.shape and kind.attribute in attributes), None)

    @property
    def noun(self) -> str:
        """The object's name: its named kind's noun, or its shape."""
        return self.kind.noun if self.kind else self.shape

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.extent / 2, self.y + self.extent / 2


@dataclass(frozen=True)
class Scene:
    """A scene: its objects, containers before their content, and the `key` of all its random draws."""

    id: int
    key: int
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Relation:
    """A relation; `subject` and `object` are indices of the scene's objects."""

    subject: int
    predicate: str
    object: int


def make_scene(seed: int, split: str, index: int, id: int) -> Scene:
    """Return a scene of 1 to 4 objects."""
    key = int(hash64(seed, hash_name(split), index))
    dice = Dice(key, 1)
    count = 1 + min(3, dice.choose((0, 1, 1, 1, 2, 2, 2, 3)))
    # placing fails where large objects fill the scene; the next attempt draws again
    while True:
        objects = _place(dice, count)
        if objects is not None:
            return Scene(id, key, objects)


def make_object(seed: int, split: str, index: int, noun: str, id: int) -> Scene:
    """Return a scene of one object with this noun, for the image folder of single objects."""
    key = int(hash64(seed, hash_name(f"objects {split} {noun}"), index))
    dice = Dice(key, 1)
    size = dice.choose(SIZES)
    extent = dice.between(*EXTENTS[size])
    x, y = dice.between(MARGIN, SIZE - extent - MARGIN), dice.between(MARGIN, SIZE - extent - MARGIN)
    kind = next((kind for kind in KINDS if kind.noun == noun), None)
    while True:
        colour, texture = dice.choose(list(COLOURS)), dice.choose(TEXTURES)
        if kind:
            colour = kind.attribute if kind.attribute in COLOURS else colour
            texture = kind.attribute if kind.attribute in TEXTURES else texture
        item = Object(kind.shape if kind else noun, colour, texture, size, x, y, extent)
        if item.noun == noun:
            return Scene(id, key, (item,))


def relation(first: Object, second: Object) -> str | None:
    """Return the first object's relation to the second; None where it is ambiguous."""
    if _within(first, second):
        return "inside"
    if _within(second, first):
        return None
    if _gap(first, second) <= 1:
        return "touching"
    across = second.centre[0] - first.centre[0]
    down = second.centre[1] - first.centre[1]
    if abs(across) > 1.5 * abs(down):
        return "left of" if across > 0 else "right of"
    if abs(down) > 1.5 * abs(across):
        return "above" if down > 0 else "below"
    return None


def relations(objects: Sequence[Object]) -> list[Relation]:
    """Return all relations between the objects of a scene."""
    related = []
    for i, first in enumerate(objects):
        for j, second in enumerate(objects):
            predicate = relation(first, second) if i != j else None
            if predicate:
                related.append(Relation(i, predicate, j))
    return related


def _place(dice: Dice, count: int) -> tuple[Object, ...] | None:
    objects: list[Object] = []
    pair = dice.below(1000) / 1000
    for number in range(count):
        if number == 1 and pair < INSIDE_FRACTION:
            placed = _inside(dice, objects[0])
        elif number == 1 and pair < INSIDE_FRACTION + TOUCHING_FRACTION:
            placed = _touching(dice, objects[0])
        else:
            container = number == 0 and count > 1 and pair < INSIDE_FRACTION
            placed = _apart(dice, objects, "big" if container else dice.choose(SIZES), container)
        if placed is None:
            return None
        objects.append(placed)
    return tuple(objects)


def _apart(dice: Dice, objects: list[Object], size: str, container: bool) -> Object | None:
    extent = dice.between(*EXTENTS[size])
    for _ in range(40):
        x, y = dice.between(2, SIZE - extent - 2), dice.between(2, SIZE - extent - 2)
        if all(_apart_from(x, y, extent, other) for other in objects):
            return _make(dice, size, x, y, extent, container)
    return None


def _inside(dice: Dice, container: Object) -> Object:
    """Return a small object in the middle of a big one, with another colour."""
    extent = EXTENTS["small"][0] - 2
    middle = (container.extent - extent) // 2
    return _make(dice, "small", container.x + middle, container.y + middle, extent, False, container.colour)


def _touching(dice: Dice, other: Object) -> Object | None:
    """Return an object whose box shares an edge with another's, centred on it; None if no side has room."""
    size = dice.choose(SIZES)
    extent = dice.between(*EXTENTS[size])
    level = (other.extent - extent) // 2
    corners = (
        (other.x + other.extent, other.y + level),
        (other.x - extent, other.y + level),
        (other.x + level, other.y + other.extent),
        (other.x + level, other.y - extent),
    )
    fitting = [corner for corner in corners if all(2 <= edge <= SIZE - extent - 2 for edge in corner)]
    return _make(dice, size, *dice.choose(fitting), extent, False) if fitting else None


def _make(dice: Dice, size: str, x: int, y: int, extent: int, container: bool, excluded: str | None = None) -> Object:
    """Return an object with a random shape, colour and texture. A container gets a shape with room inside."""
    colours = [colour for colour in COLOURS if colour != excluded]
    shape, colour, texture = dice.choose(SHAPES), dice.choose(colours), dice.choose(TEXTURES)
    if dice.chance(KIND_FRACTION):
        kind = dice.choose([kind for kind in KINDS if kind.attribute != excluded])
        shape = kind.shape
        texture = kind.attribute if kind.attribute in TEXTURES else texture
        colour = kind.attribute if kind.attribute in COLOURS else colour
    if container and shape not in ("circle", "square", "ring", "hexagon", "diamond"):
        shape = dice.choose(("circle", "square", "ring", "hexagon"))
    return Object(shape, colour, texture, size, x, y, extent)


def _apart_from(x: int, y: int, extent: int, other: Object) -> bool:
    across = max(other.x - (x + extent), x - (other.x + other.extent))
    down = max(other.y - (y + extent), y - (other.y + other.extent))
    return max(across, down) >= MARGIN


def _gap(first: Object, second: Object) -> int:
    """Return the gap in pixels between two boxes, along the axis that separates them."""
    across = max(second.x - (first.x + first.extent), first.x - (second.x + second.extent))
    down = max(second.y - (first.y + first.extent), first.y - (second.y + second.extent))
    return max(across, down)


def _within(first: Object, second: Object) -> bool:
    return (
        second.x < first.x
        and second.y < first.y
        and first.x + first.extent < second.x + second.extent
        and first.y + first.extent < second.y + second.extent
    )
