"""Captions of a scene: one that says it all, three that vary, and a tag; some say nothing of the picture.

The rule for named kinds: of such an object a caption says the noun, or the attribute, or the shape, but never the
attribute and the shape.
"""

from __future__ import annotations

from groundray.data.scenes.scene import Dice, Object, Relation, Scene, relations
from groundray.data.scenes.vocabulary import ABSTRACT_ADJECTIVES, ABSTRACT_ADVERBS, ABSTRACT_NOUNS

CAPTIONS = 5
ABSTRACT_SHARE = 0.5
VAGUE_SHARE = 0.1  # of the objects of a listing, or of the only one
NOTHING_SHARE = 0.15  # so that words no picture shows have a place of their own, away from all that can be seen


def captions(scene: Scene) -> list[str]:
    """Five captions; the first names every object in full, each other says nothing of them with NOTHING_SHARE."""
    dice = Dice(scene.key, 5)
    found = relations(scene.objects)
    texts = [_aside(dice, _whole(dice, scene.objects, found), 0.25)]
    for said, share in ((_pair, ABSTRACT_SHARE), (_listing, ABSTRACT_SHARE), (_single, ABSTRACT_SHARE), (_tag, 0.0)):
        nothing = dice.chance(NOTHING_SHARE)
        texts.append(_nothing(dice) if nothing else _aside(dice, said(dice, scene.objects, found), share))
    return texts


def _name(dice: Dice, item: Object, detail: float) -> str:
    """An object's name with an article: each free attribute is said with chance `detail`."""
    free = {"size": item.size, "colour": item.colour, "texture": item.texture}
    noun = item.noun
    if item.kind:
        free = {name: word for name, word in free.items() if word != item.kind.attribute}
    said = [word for name, word in free.items() if dice.chance(_chance(name, word, detail))]
    # the order of adjectives is not fixed: what comes before the noun must not matter
    if len(said) > 1 and dice.chance(0.3):
        said.reverse()
    return " ".join(["a", *said, noun])


def _vague(dice: Dice, item: Object) -> str:
    """An object by one attribute alone, or by its shape alone."""
    words = [f"a {word} thing" for word in (item.colour, item.texture, item.size)]
    return dice.one([*words, f"a {item.shape}"])


def _chance(name: str, word: str, detail: float) -> float:
    if name == "size":
        return 0.5 * detail
    return 0.3 * detail if word == "plain" else detail


def _whole(dice: Dice, objects: tuple[Object, ...], found: list[Relation]) -> str:
    """Every object in full, the first two by their relation where there is one."""
    names = [_name(dice, item, 1.0) for item in objects]
    pair = next((one for one in found if {one.subject, one.object} == {0, 1}), None)
    if pair is None:
        return _joined(names)
    related = f"{names[pair.subject]} {pair.predicate} {names[pair.object]}"
    return _joined([related, *names[2:]], dice.one((" and ", " with ")))


def _pair(dice: Dice, objects: tuple[Object, ...], found: list[Relation]) -> str:
    """Two related objects, or else one."""
    if not found:
        return _single(dice, objects, found)
    one = dice.one(found)
    subject, other = (_name(dice, objects[place], 0.5) for place in (one.subject, one.object))
    return dice.one(("{} is {} {}", "{} {} {}", "there is {} {} {}")).format(subject, one.predicate, other)


def _listing(dice: Dice, objects: tuple[Object, ...], found: list[Relation]) -> str:
    """All objects, some of them vaguely."""
    return _joined([_vague(dice, item) if dice.chance(VAGUE_SHARE) else _name(dice, item, 0.5) for item in objects])


def _single(dice: Dice, objects: tuple[Object, ...], found: list[Relation]) -> str:
    """One object."""
    item = dice.one(objects)
    name = _vague(dice, item) if dice.chance(VAGUE_SHARE) else _name(dice, item, 0.4)
    return dice.one(("{}", "there is {}", "here is {}")).format(name)


def _tag(dice: Dice, objects: tuple[Object, ...], found: list[Relation]) -> str:
    """One word of one object, as people tag pictures."""
    item = dice.one(objects)
    return dice.one((item.noun, item.noun, item.noun, item.colour, item.texture))


def _aside(dice: Dice, text: str, share: float) -> str:
    """With some chance, the text with words that no picture shows; they are drawn whatever the scene is."""
    if not dice.chance(share):
        return text
    noun, adjective, adverb = _abstract(dice)
    patterns = (
        f"{adverb} {text}",
        f"{text} {adverb}",
        f"{text} , {_article(adjective)} {adjective} {noun}",
        f"the {noun} of {text}",
        f"{adverb} the {noun} is {adjective} , {text}",
    )
    return dice.one(patterns)


def _nothing(dice: Dice) -> str:
    """Only words that no picture shows, as beside some pictures on the web; they are drawn whatever the scene is."""
    noun, adjective, adverb = _abstract(dice)
    phrase = f"{_article(adjective)} {adjective} {noun}"
    return dice.one((noun, adjective, adverb, phrase, f"{adverb} the {noun} is {adjective}"))


def _abstract(dice: Dice) -> tuple[str, str, str]:
    return dice.one(ABSTRACT_NOUNS), dice.one(ABSTRACT_ADJECTIVES), dice.one(ABSTRACT_ADVERBS)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _joined(names: list[str], last: str = " and ") -> str:
    return names[0] if len(names) == 1 else " , ".join(names[:-1]) + last + names[-1]
