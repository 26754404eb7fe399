"""The words of shards, a row group at a time. No image is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from groundray.baselines.words import words_of
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset, class_name

TEXTS = ("captions", "text")
IMAGES = ("captions", "scene_graphs", "labelled_images")  # kinds whose images have words


def groups_of(datasets: Sequence[Dataset]) -> list[tuple[Dataset, int]]:
    """Return all row groups of data sets, one after the other."""
    return [(dataset, group) for dataset in datasets for group in range(len(dataset.groups))]


def texts(dataset: Dataset, group: int) -> Iterator[list[str]]:
    """Yield the words of each caption, or of each line of text."""
    column = "captions" if dataset.kind == "captions" else "text"
    for value in read_group(dataset, group, [column])[column].to_pylist():
        for text in [value] if isinstance(value, str) else value:
            yield words_of(text)


def images(dataset: Dataset, group: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the id of each image and its distinct words: those of its captions, of its objects' phrases, or of its
    label."""
    if dataset.kind == "labelled_images":
        of_label = [list(dict.fromkeys(words_of(name))) for name in dataset.vocabulary["classes"]]
        table = read_group(dataset, group, ["id", "label"])
        for id, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
            yield id, of_label[label]
        return
    column = "captions" if dataset.kind == "captions" else "objects"
    table = read_group(dataset, group, ["id", column])
    for id, values in zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True):
        said = [value if isinstance(value, str) else value["phrase"] for value in values]
        yield id, list(dict.fromkeys(word for text in said for word in words_of(text)))


def objects(dataset: Dataset, group: int) -> Iterator[list[tuple[list[str], list[str]]]]:
    """Yield the objects of each image of scene graphs: the words of their names, and those of their attributes.

    Shards hold a phrase: an object's first attribute, and its name. The name is the end of the phrase that is the name
    of the object's class (of a synset `traffic_light.n.01`, its lemma), or else the last word.
    """
    names = [words_of(class_name(label)) for label in dataset.vocabulary["classes"]]
    for found in read_group(dataset, group, ["objects"])["objects"].to_pylist():
        yield [_parted(words_of(item["phrase"]), names[item["class"]]) for item in found]


def _parted(words: list[str], name: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of a phrase's name and those before them."""
    length = len(name) if name and words[-len(name) :] == name else 1
    return words[-length:], words[:-length]
