"""Captions of a scene: a complete one, three partial ones and a tag. Some have only abstract words.

A caption refers to an object of a named kind by the noun, the attribute or the shape, but never by the attribute and
the shape together.
"""

from __future__ import annotations

from groundray.data.scenes.scene import Dice, Object, Relation, Scene, relations
from groundray.data.scenes.vocabulary import ABSTRACT_ADJECTIVES, ABSTRACT_ADVERBS, ABSTRACT_NOUNS

CAPTIONS = 5
ABSTRACT_FRACTION = 0.5
VAGUE_FRACTION = 0.1  # of the objects in listings and single captions
UNRELATED_FRACTION = 0.15  # of the captions; separates the embeddings of abstract words from those of visible ones


def captions(scene: Scene) -> list[str]:
    """Return five captions. The first names every object; each other is unrelated with UNRELATED_FRACTION."""
    dice = Dice(scene.key, 5)
    related = relations(scene.objects)
    texts = [_with_abstract(dice, _complete(dice, scene.objects, related), 0.25)]
    for describe, probability in (
        (_pair, ABSTRACT_FRACTION),
        (_listing, ABSTRACT_FRACTION),
        (_single, ABSTRACT_FRACTION),
        (_tag, 0.0),
    ):
        if dice.chance(UNRELATED_FRACTION):
            texts.append(_unrelated(dice))
        else:
            texts.append(_with_abstract(dice, describe(dice, scene.objects, related), probability))
    return texts


def _name(dice: Dice, item: Object, detail: float) -> str:
    """Return an object's name with an article. Each attribute that its noun leaves open occurs with chance `detail`."""
    free = {"size": item.size, "colour": item.colour, "texture": item.texture}
    noun = item.noun
    if item.kind:
        free = {name: word for name, word in free.items() if word != item.kind.attribute}
    adjectives = [word for name, word in free.items() if dice.chance(_chance(name, word, detail))]
    # the order of adjectives varies, so that it carries no information
    if len(adjectives) > 1 and dice.chance(0.3):
        adjectives.reverse()
    return " ".join(["a", *adjectives, noun])


def _vague(dice: Dice, item: Object) -> str:
    """Return a phrase with one attribute or the shape alone."""
    words = [f"a {word} thing" for word in (item.colour, item.texture, item.size)]
    return dice.choose([*words, f"a {item.shape}"])


def _chance(name: str, word: str, detail: float) -> float:
    if name == "size":
        return 0.5 * detail
    return 0.3 * detail if word == "plain" else detail


def _complete(dice: Dice, objects: tuple[Object, ...], related: list[Relation]) -> str:
    """Return a caption with every object's full name, and the relation of the first two if there is one."""
    names = [_name(dice, item, 1.0) for item in objects]
    pair = next((relation for relation in related if {relation.subject, relation.object} == {0, 1}), None)
    if pair is None:
        return _joined(names)
    phrase = f"{names[pair.subject]} {pair.predicate} {names[pair.object]}"
    return _joined([phrase, *names[2:]], dice.choose((" and ", " with ")))


def _pair(dice: Dice, objects: tuple[Object, ...], related: list[Relation]) -> str:
    """Return a caption of two related objects, or of one object if there is no relation."""
    if not related:
        return _single(dice, objects, related)
    relation = dice.choose(related)
    subject, other = (_name(dice, objects[index], 0.5) for index in (relation.subject, relation.object))
    return dice.choose(("{} is {} {}", "{} {} {}", "there is {} {} {}")).format(subject, relation.predicate, other)


def _listing(dice: Dice, objects: tuple[Object, ...], related: list[Relation]) -> str:
    """Return a caption of all objects, some of them vague."""
    return _joined([_vague(dice, item) if dice.chance(VAGUE_FRACTION) else _name(dice, item, 0.5) for item in objects])


def _single(dice: Dice, objects: tuple[Object, ...], related: list[Relation]) -> str:
    """Return a caption of one object."""
    item = dice.choose(objects)
    name = _vague(dice, item) if dice.chance(VAGUE_FRACTION) else _name(dice, item, 0.4)
    return dice.choose(("{}", "there is {}", "here is {}")).format(name)


def _tag(dice: Dice, objects: tuple[Object, ...], related: list[Relation]) -> str:
    """Return one word of one object, as in image tags."""
    item = dice.choose(objects)
    return dice.choose((item.noun, item.noun, item.noun, item.colour, item.texture))


def _with_abstract(dice: Dice, text: str, probability: float) -> str:
    """Return the text, with this probability extended by abstract words that are independent of the scene."""
    if not dice.chance(probability):
        return text
    noun, adjective, adverb = _abstract(dice)
    patterns = (
        f"{adverb} {text}",
        f"{text} {adverb}",
        f"{text} , {_article(adjective)} {adjective} {noun}",
        f"the {noun} of {text}",
        f"{adverb} the {noun} is {adjective} , {text}",
    )
    return dice.choose(patterns)


def _unrelated(dice: Dice) -> str:
    """Return abstract words alone, independent of the scene, as in web captions that do not describe their image."""
    noun, adjective, adverb = _abstract(dice)
    phrase = f"{_article(adjective)} {adjective} {noun}"
    return dice.choose((noun, adjective, adverb, phrase, f"{adverb} the {noun} is {adjective}"))


def _abstract(dice: Dice) -> tuple[str, str, str]:
    return dice.choose(ABSTRACT_NOUNS), dice.choose(ABSTRACT_ADJECTIVES), dice.choose(ABSTRACT_ADVERBS)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _joined(names: list[str], last: str = " and ") -> str:
    return names[0] if len(names) == 1 else " , ".join(names[:-1]) + last + names[-1]
