"""What is where in a scene: a pure function of (seed, split, index)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from groundray.data.scenes.vocabulary import COLOURS, KINDS, SHAPES, SIZES, TEXTURES, Kind
from groundray.rng import hash64, hash_name

Option = TypeVar("Option")

SIZE = 112  # pixels a side of a scene
EXTENTS = {"small": (20, 24), "big": (38, 44)}  # of an object, in pixels
MARGIN = 3  # between objects that are apart
KIND_SHARE = 0.25
TOUCHING_SHARE, INSIDE_SHARE = 0.2, 0.2


class Dice:
    """A sequence of draws that a key fixes; a Python loop of them is clearer here than arrays."""

    def __init__(self, *key: int):
        self._key, self._drawn = key, 0

    def below(self, end: int) -> int:
        """A whole number from 0 to end - 1."""
        self._drawn += 1
        return int(hash64(*self._key, self._drawn)) % end

    def between(self, first: int, last: int) -> int:
        """A whole number from first to last, both included."""
        return first + self.below(last - first + 1)

    def one(self, options: Sequence[Option]) -> Option:
        return options[self.below(len(options))]

    def chance(self, share: float) -> bool:
        return self.below(1_000_000) < share * 1_000_000


@dataclass(frozen=True)
class Object:
    """An object and its box in pixels: left, top, and its extent (boxes are square)."""

    shape: str
    colour: str
    texture: str
    size: str
    x: int
    y: int
    extent: int

    @property
    def kind(self) -> Kind | None:
        """The named kind that it is of."""
        has = (self.colour, self.texture)
        return next((kind for kind in KINDS if kind.shape == self.shape and kind.attribute in has), None)

    @property
    def noun(self) -> str:
        """Its name: of its kind, if it has one, or else of its shape."""
        return self.kind.noun if self.kind else self.shape

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.extent / 2, self.y + self.extent / 2


@dataclass(frozen=True)
class Scene:
    """The objects of a scene, containers before what is inside them; `key` is what else is drawn from."""

    id: int
    key: int
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Relation:
    """`subject` and `object` are places in the scene's objects."""

    subject: int
    predicate: str
    object: int


def make_scene(seed: int, split: str, index: int, id: int) -> Scene:
    """A scene of 1 to 4 objects."""
    key = int(hash64(seed, hash_name(split), index))
    dice = Dice(key, 1)
    count = 1 + min(3, dice.one((0, 1, 1, 1, 2, 2, 2, 3)))
    # a placement can fail where large objects fill the scene: the next attempt draws anew
    while True:
        objects = _place(dice, count)
        if objects is not None:
            return Scene(id, key, objects)


def make_object(seed: int, split: str, index: int, noun: str, id: int) -> Scene:
    """A scene of one object that captions call by this noun, for the image folder of single objects."""
    key = int(hash64(seed, hash_name(f"objects {split} {noun}"), index))
    dice = Dice(key, 1)
    size = dice.one(SIZES)
    extent = dice.between(*EXTENTS[size])
    x, y = dice.between(MARGIN, SIZE - extent - MARGIN), dice.between(MARGIN, SIZE - extent - MARGIN)
    kind = next((kind for kind in KINDS if kind.noun == noun), None)
    while True:
        colour, texture = dice.one(list(COLOURS)), dice.one(TEXTURES)
        if kind:
            colour = kind.attribute if kind.attribute in COLOURS else colour
            texture = kind.attribute if kind.attribute in TEXTURES else texture
        item = Object(kind.shape if kind else noun, colour, texture, size, x, y, extent)
        if item.noun == noun:
            return Scene(id, key, (item,))


def relation(first: Object, second: Object) -> str | None:
    """How the first object lies to the second; None where no word says it clearly."""
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
    """All relations between the objects of a scene."""
    found = []
    for i, first in enumerate(objects):
        for j, second in enumerate(objects):
            predicate = relation(first, second) if i != j else None
            if predicate:
                found.append(Relation(i, predicate, j))
    return found


def _place(dice: Dice, count: int) -> tuple[Object, ...] | None:
    objects: list[Object] = []
    pair = dice.below(1000) / 1000
    for number in range(count):
        if number == 1 and pair < INSIDE_SHARE:
            placed = _inside(dice, objects[0])
        elif number == 1 and pair < INSIDE_SHARE + TOUCHING_SHARE:
            placed = _touching(dice, objects[0])
        else:
            container = number == 0 and count > 1 and pair < INSIDE_SHARE
            placed = _apart(dice, objects, "big" if container else dice.one(SIZES), container)
        if placed is None:
            return None
        objects.append(placed)
    return tuple(objects)


def _apart(dice: Dice, objects: list[Object], size: str, container: bool) -> Object | None:
    extent = dice.between(*EXTENTS[size])
    for _ in range(40):
        x, y = dice.between(2, SIZE - extent - 2), dice.between(2, SIZE - extent - 2)
        if all(_apart_from(x, y, extent, other) for other in objects):
            return _dressed(dice, size, x, y, extent, container)
    return None


def _inside(dice: Dice, container: Object) -> Object:
    """A small object in the middle of a big one, of another colour."""
    extent = EXTENTS["small"][0] - 2
    middle = (container.extent - extent) // 2
    return _dressed(dice, "small", container.x + middle, container.y + middle, extent, False, container.colour)


def _touching(dice: Dice, other: Object) -> Object | None:
    """An object whose box shares an edge with another's, level with it."""
    size = dice.one(SIZES)
    extent = dice.between(*EXTENTS[size])
    level = (other.extent - extent) // 2
    places = (
        (other.x + other.extent, other.y + level),
        (other.x - extent, other.y + level),
        (other.x + level, other.y + other.extent),
        (other.x + level, other.y - extent),
    )
    fitting = [place for place in places if all(2 <= edge <= SIZE - extent - 2 for edge in place)]
    return _dressed(dice, size, *dice.one(fitting), extent, False) if fitting else None


def _dressed(
    dice: Dice, size: str, x: int, y: int, extent: int, container: bool, other_than: str | None = None
) -> Object:
    """An object of a drawn shape, colour and texture; what holds another object has a shape with room in it."""
    colours = [colour for colour in COLOURS if colour != other_than]
    shape, colour, texture = dice.one(SHAPES), dice.one(colours), dice.one(TEXTURES)
    if dice.chance(KIND_SHARE):
        kind = dice.one([kind for kind in KINDS if kind.attribute != other_than])
        shape = kind.shape
        texture = kind.attribute if kind.attribute in TEXTURES else texture
        colour = kind.attribute if kind.attribute in COLOURS else colour
    if container and shape not in ("circle", "square", "ring", "hexagon", "diamond"):
        shape = dice.one(("circle", "square", "ring", "hexagon"))
    return Object(shape, colour, texture, size, x, y, extent)


def _apart_from(x: int, y: int, extent: int, other: Object) -> bool:
    across = max(other.x - (x + extent), x - (other.x + other.extent))
    down = max(other.y - (y + extent), y - (other.y + other.extent))
    return max(across, down) >= MARGIN


def _gap(first: Object, second: Object) -> int:
    """Pixels between two boxes along the axis on which they lie apart."""
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
