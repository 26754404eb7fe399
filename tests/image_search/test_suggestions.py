"""Words to try: of norms, of captions and of classes."""

from __future__ import annotations

from conftest import SmallWorld

from groundray.data.schema import Dataset
from groundray.image_search.suggestions import distinctive, most_concrete, suggested_words
from groundray.image_search.word_space import Word

ENGLISH = ("the", "of", "and", "in", "with", "on", *(f"word{n}" for n in range(200)), "dog", "grass", "car", "zebra")
THINGS = ("dog", "grass", "car")


def test_words_of_captions_are_those_that_texts_in_general_have_seldom() -> None:
    things = [f"{THINGS[n % 3]} of the man and the rest in it, with the x" for n in range(30)]
    captions = [[f"the {thing}", f"the {thing} on it", f"a {thing}"] for thing in things]
    captions.append(["the zebra"])  # on one image alone
    assert sorted(distinctive(ENGLISH, captions)) == sorted(THINGS)
    assert distinctive(ENGLISH, []) == ()


def test_norms_give_the_most_concrete_word_of_each_category() -> None:
    words = [
        Word("idea", "thought", 1.5),
        Word("red", "colour", 4.0),
        Word("heart", "shape", 5.0),
        Word("ring", "shape"),
    ]
    assert most_concrete(words) == ("heart", "red", "idea")


def test_words_come_from_the_norms_the_classes_or_the_captions_of_the_pool(world: SmallWorld) -> None:
    def of(kind: str, *words: Word) -> tuple[str, ...]:
        return suggested_words(words, Dataset.open(str(world.shards / kind / "val")))

    vocabulary = [Word(text) for text in ("the", "left", "of", "a", *(f"w{n}" for n in range(300)), "circle", "red")]
    assert of("captions", Word("red", "colour", 4.0), Word("of")) == ("red", "of")
    assert set(of("captions", *vocabulary)) == {"circle", "red"}
    assert len(of("objects", *vocabulary)) > 0
    assert set(of("objects", *vocabulary)) <= {name.replace("_", " ") for name in _classes(world, "objects")}


def _classes(world: SmallWorld, kind: str) -> tuple[str, ...]:
    return Dataset.open(str(world.shards / kind / "val")).vocabulary["classes"]
