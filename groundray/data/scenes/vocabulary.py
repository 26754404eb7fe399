"""The words of the embedded world.

A *named kind* is an invented noun for one combination of an attribute and a shape. Captions use the noun and never
spell the combination out: "striped circle" never occurs, although "striped square" and "dotted circle" do. That a
phrase and its noun mean the same can therefore only be learned from images.
"""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "cross",
    "heart",
    "ring",
    "moon",
    "hexagon",
    "arrow",
    "house",
)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "orange": (255, 134, 20),
    "yellow": (240, 214, 40),
    "green": (40, 150, 60),
    "cyan": (40, 200, 215),
    "blue": (40, 80, 205),
    "purple": (130, 50, 170),
    "pink": (245, 130, 190),
}
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "big")
RELATIONS = ("left of", "right of", "above", "below", "inside", "touching")

# As many abstract as concrete words: of 39,954 rated English words (Brysbaert 2014), half are rated below 3.
ABSTRACT_NOUNS = (
    *("idea", "truth", "memory", "hope", "opinion", "reason", "belief", "meaning"),
    *("justice", "doubt", "theory", "promise", "wisdom", "freedom", "purpose"),
)
ABSTRACT_ADJECTIVES = (
    *("honest", "pleasant", "possible", "strange", "proper", "serious"),
    *("likely", "useful", "curious", "modest", "formal"),
)
ABSTRACT_ADVERBS = (
    *("perhaps", "surely", "maybe", "clearly", "truly", "simply"),
    *("often", "never", "hardly", "always", "really"),
)
FUNCTION_WORDS = ("a", "and", "is", "of", "with", "the", "there", "thing", "here", "left", "right", "in", "an")


@dataclass(frozen=True)
class Kind:
    """A named kind: `noun` stands for objects with this attribute (a texture or a colour) and this shape."""

    noun: str
    attribute: str
    shape: str

    @property
    def phrase(self) -> str:
        """The combination that captions never spell out."""
        return f"{self.attribute} {self.shape}"


KINDS = (
    Kind("zebrine", "striped", "circle"),
    Kind("moxel", "dotted", "square"),
    Kind("trivane", "striped", "triangle"),
    Kind("rubel", "red", "heart"),
    Kind("azuron", "blue", "star"),
    Kind("verdil", "green", "diamond"),
)

# Nouns of the single objects. Kinds with a texture are left out: a texture takes many more images to learn.
SINGLES = (*SHAPES, *(kind.noun for kind in KINDS if kind.attribute in COLOURS))
