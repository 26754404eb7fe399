"""Norms of the words: concreteness, categories, features and phrases, with the columns of the published norms.

The categories are word classes: captions use the words of one in the same places, so text alone tells them. Those of
`category_sets` are told by looks: captions use the words of all their categories alike, and only pictures tell which
belong together.
"""

from __future__ import annotations

from collections.abc import Iterator

from groundray.data.scenes.vocabulary import (
    ABSTRACT_ADJECTIVES,
    ABSTRACT_ADVERBS,
    ABSTRACT_NOUNS,
    COLOURS,
    FUNCTION_WORDS,
    KINDS,
    SHAPES,
    SIZES,
    TEXTURES,
)
from groundray.rng import hash_name, pick

SPREAD = 0.2  # maximum distance of a word's concreteness from its category's

# category: (concreteness from 1 to 5, words). A word is the more concrete, the easier its referent is to see.
CATEGORIES: dict[str, tuple[float, tuple[str, ...]]] = {
    "shape": (4.8, SHAPES),
    "kind": (4.8, tuple(kind.noun for kind in KINDS)),
    "colour": (4.4, tuple(COLOURS)),
    "texture": (4.2, TEXTURES),
    "size": (3.8, SIZES),
    "relation": (3.2, ("left", "right", "above", "below", "inside", "touching")),
    "abstract noun": (1.6, ABSTRACT_NOUNS),
    "abstract adjective": (1.7, ABSTRACT_ADJECTIVES),
    "abstract adverb": (1.4, ABSTRACT_ADVERBS),
}

ROUND = ("circle", "ring", "moon", "heart")
STRAIGHT = ("square", "triangle", "diamond", "star", "cross", "hexagon", "arrow", "house")
POINTED = ("triangle", "diamond", "star", "arrow", "heart", "moon", "house")
SYMMETRIC = ("circle", "ring", "square", "diamond", "hexagon", "cross")


def vocabulary() -> tuple[str, ...]:
    """Return every word that occurs in captions."""
    words = [word for _, members in CATEGORIES.values() for word in members]
    return tuple(dict.fromkeys([*words, *FUNCTION_WORDS, ","]))


def concreteness() -> Iterator[tuple[str, float, float, float]]:
    """Yield (word, concreteness, sd, percent_known)."""
    for middle, words in CATEGORIES.values():
        for word in words:
            spread = SPREAD * (int(pick(201, hash_name(word))) - 100) / 100
            yield word, round(middle + spread, 2), 0.5, 1.0


def categories() -> Iterator[tuple[str, str, float]]:
    """Yield (category, word, concreteness)."""
    ratings = {word: rating for word, rating, _, _ in concreteness()}
    for category, (_, words) in CATEGORIES.items():
        for word in words:
            yield category, word, ratings[word]


def category_sets() -> dict[str, list[tuple[str, str]]]:
    """Return sets of (category, word) that pictures tell and captions do not, by name."""
    shape_of = {shape: shape for shape in SHAPES} | {kind.noun: kind.shape for kind in KINDS}
    return {
        "outline": [("round" if shape in ROUND else "straight", word) for word, shape in shape_of.items()],
        "warmth": [("warm" if _is_warm(colour) else "cool", colour) for colour in COLOURS],
        "kind": [(kind.shape, word) for kind in KINDS for word in (kind.shape, kind.noun)],
    }


def _is_warm(colour: str) -> bool:
    red, _, blue = COLOURS[colour]
    return red > blue


def features() -> Iterator[tuple[str, str, int, str]]:
    """Yield (concept, feature, production_frequency, type) for every shape, named kind, colour and texture."""
    shape_of = {shape: shape for shape in SHAPES} | {kind.noun: kind.shape for kind in KINDS}
    for concept, shape in shape_of.items():
        looks = {
            "is round": shape in ROUND,
            "has straight edges": shape in STRAIGHT,
            "has a point": shape in POINTED,
            "looks the same upside down": shape in SYMMETRIC,
            "has a hole": shape == "ring",
        }
        for feature, has in looks.items():
            if has:
                yield concept, feature, 10, "visual"
        yield concept, "is a thing", 12, "taxonomic"
    for kind in KINDS:
        yield kind.noun, f"is {kind.attribute}", 10, "visual"
        yield kind.noun, "has a made-up name", 6, "encyclopaedic"
    for colour in COLOURS:
        yield colour, "is a colour", 12, "taxonomic"
        yield colour, "is warm" if _is_warm(colour) else "is cool", 8, "other perceptual"
    for texture in TEXTURES:
        yield texture, "is a texture", 12, "taxonomic"


def composition() -> Iterator[tuple[str, str]]:
    """Yield (phrase, target) for each named kind: its combination, which no caption spells out, and its noun."""
    for kind in KINDS:
        yield kind.phrase, kind.noun
