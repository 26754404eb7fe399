"""Visual Genome: both layouts, what is kept, and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import SmallWorld

from groundray.data.sources.rejected import Rejected, tally
from groundray.data.sources.visual_genome import NONE, Files, Filter, SceneGraphs, read_aliases

Content = dict[str, Any]


def thing(id: int, name: str, synset: str = "") -> Content:
    return {"object_id": id, "names": [name], "synsets": [synset] if synset else []}


def relation(id: int, subject: int, predicate: str, object: int) -> Content:
    ends = {"subject": {"object_id": subject}, "object": {"object_id": object}}
    return {"relationship_id": id, "predicate": predicate, "synsets": [], **ends}


@pytest.fixture
def content() -> Content:
    """Two images: a man on a horse by a tree, and two dogs."""
    return {
        "image_data": [{"image_id": 2, "url": "x/VG_100K/2.jpg"}, {"image_id": 1, "url": ""}],
        "objects": [
            {"image_id": 1, "objects": [thing(10, "Man"), thing(11, "horse", "horse.n.01"), thing(12, "tree")]},
            {"image_id": 2, "objects": [thing(20, "dog"), thing(21, "dog"), thing(22, "pony", "horse.n.01")]},
        ],
        "attributes": [
            {"image_id": 1, "attributes": [{**thing(11, "horse"), "attributes": ["Brown ", "big"]}]},
            {"image_id": 2, "attributes": [{**thing(20, "dog"), "attributes": []}, thing(21, "dog")]},
        ],
        "relationships": [
            {"image_id": 1, "relationships": [relation(1, 10, "ON", 11), relation(2, 12, "near", 10)]},
            {"image_id": 2, "relationships": [relation(3, 20, "near", 21), relation(4, 21, "near", 22)]},
        ],
    }


def read(folder: Path, content: Content, keep: Filter | None = None) -> SimpleNamespace:
    files = {name: folder / f"{name}.json" for name in ("objects", "attributes", "relationships", "image_data")}
    for name, file in files.items():
        file.write_text(content[name] if isinstance(content[name], str) else json.dumps(content[name]))
    return read_files(Files(**files), keep)


def read_files(files: Files, keep: Filter | None = None) -> SimpleNamespace:
    rejected: list[Rejected] = []
    found = SceneGraphs(files, keep or Filter(), rejected)
    graphs = list(found.graphs())
    assert [int(graph.id) for graph in graphs] == found.ids
    assert [*found.graphs(lambda id: int(id) % 2 > 0, report=False)] == [each for each in graphs if int(each.id) % 2]
    words = {"classes": found.classes, "predicates": found.predicates, "without_synset": found.without_synset}
    return SimpleNamespace(graphs=graphs, skipped=found.skipped, rejected=rejected, **words)


def relations_in_words(found: SimpleNamespace) -> dict[str, list[tuple[str, str, str]]]:
    """Return each image's relations in words."""
    return {
        graph.id: [(graph.phrases[s], found.predicates[p], graph.phrases[o]) for s, p, o in graph.relations]
        for graph in found.graphs
    }


def test_graphs_are_read_in_order_of_ids(tmp_path: Path, content: Content) -> None:
    found = read(tmp_path, content)
    assert found.classes == (NONE, "dog", "horse.n.01", "man", "tree")
    assert found.predicates == (NONE, "near", "on")
    assert relations_in_words(found) == {
        "1": [("man", "on", "brown horse"), ("tree", "near", "man")],
        "2": [("dog", "near", "dog"), ("dog", "near", "pony")],
    }
    assert [graph.classes for graph in found.graphs] == [(3, 2, 4), (1, 1, 2)]
    assert [graph.file_names for graph in found.graphs] == [("1.jpg",), ("2.jpg", "VG_100K/2.jpg")]
    assert found.rejected == []


def test_layout_of_version_1_0_gives_the_same_graphs(tmp_path: Path, content: Content) -> None:
    new = read(tmp_path, content, Filter(by="name"))

    def old(value: Any) -> Any:
        if isinstance(value, list):
            return [old(item) for item in value]
        if not isinstance(value, dict):
            return value
        names = {"image_id": "id", "object_id": "id", "relationship_id": "id"}
        kept = {names.get(key, key): old(item) for key, item in value.items() if key not in ("names", "synsets")}
        return kept | ({"name": value["names"][0]} if "names" in value else {})

    assert read(tmp_path, old(content), Filter(by="name")) == new


def test_names_are_merged_by_aliases(tmp_path: Path, content: Content) -> None:
    (tmp_path / "alias.txt").write_text("horse,pony,foal\nperson,man,woman\n")
    aliases = read_aliases(tmp_path / "alias.txt")
    found = read(tmp_path, content, Filter(by="name", object_aliases=aliases, predicate_aliases={"near": "by"}))
    assert set(found.classes) == {NONE, "horse", "person", "dog", "tree"}
    assert relations_in_words(found)["2"] == [("dog", "by", "dog"), ("dog", "by", "horse")]


def test_most_frequent_are_kept_and_skipped_ones_counted(tmp_path: Path, content: Content) -> None:
    found = read(tmp_path, content, Filter(predicates=1, classes=2))
    assert found.classes == (NONE, "dog", "horse.n.01")
    assert relations_in_words(found) == {"1": [], "2": [("dog", "near", "dog"), ("dog", "near", "pony")]}
    assert {name: count for name, count in found.skipped.items() if count} == {
        "objects of other classes": 2,
        "relations of dropped objects": 1,
        "relations of other predicates": 1,
    }


def test_objects_with_relations_have_priority(tmp_path: Path, content: Content) -> None:
    content["relationships"][0]["relationships"] = [relation(2, 12, "near", 11)]
    found = read(tmp_path, content, Filter(max_objects=2))
    assert [graph.phrases for graph in found.graphs] == [("brown horse", "tree"), ("dog", "dog")]
    assert relations_in_words(found)["2"] == [("dog", "near", "dog")]
    assert found.skipped["objects beyond the most an image may have"] == 2
    assert found.skipped["relations of dropped objects"] == 1


def test_given_vocabulary_is_used(tmp_path: Path, content: Content) -> None:
    found = read(tmp_path, content, Filter(vocabulary=((NONE, "on"), (NONE, "man", "horse.n.01"))))
    assert (found.predicates, found.classes) == ((NONE, "on"), (NONE, "man", "horse.n.01"))
    assert relations_in_words(found)["1"] == [("man", "on", "brown horse")]


def test_every_unusable_entry_is_rejected_with_its_reason(tmp_path: Path, content: Content) -> None:
    content["image_data"] += [{"image_id": 2}, "text", {"image_id": 3}]
    content["objects"] += [
        {"image_id": 99, "objects": [thing(90, "ghost")]},
        {"image_id": 1, "objects": [thing(10, "again"), {"object_id": 91}, thing(92, " "), "text"]},
        {"image_id": 1},
    ]
    content["relationships"] += [
        {
            "image_id": 1,
            "relationships": [
                relation(5, 10, "on", 999),
                relation(6, 10, "on", 20),  # of another image
                relation(7, 10, "on", 10),
                relation(8, 10, "", 11),
                relation(9, 10, "on", 11),  # repeated
                None,
            ],
        }
    ]
    found = read(tmp_path, content)
    assert tally(found.rejected) == {
        "image: duplicate id": 1,
        "image: malformed": 1,
        "image: no object": 1,
        "object: duplicate id": 1,
        "object: malformed": 2,
        "object: no name": 2,
        "object: unknown image": 1,
        "relation: malformed": 2,
        "relation: unknown object": 2,
        "relation: with itself": 1,
    }
    assert found.skipped["relations said twice"] == 1
    assert relations_in_words(found)["1"] == [("man", "on", "brown horse"), ("tree", "near", "man")]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("objects", "{}", r"objects\.json: expected a JSON list"),
        ("objects", "", r"objects\.json: expected a JSON list"),
        ("relationships", '[{"image_id": 1, "relationships": [', r"relationships\.json is not JSON after 0 entries"),
        ("attributes", '[{"image_id": 1, "attributes": []}, oops]', r"attributes\.json is not JSON after 1 entries"),
    ],
)
def test_file_that_is_not_a_list_raises(tmp_path: Path, content: Content, file: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content | {file: text})


def attribute(id: int, *texts: Any) -> Content:
    return {**thing(id, "thing"), "attributes": list(texts)}


def test_attributes_that_cannot_be_used_are_rejected(tmp_path: Path, content: Content) -> None:
    content["attributes"] = [
        {"image_id": 1, "attributes": [attribute(99, "black"), attribute(11, "brown"), attribute(20, "wet")]},
        {"image_id": 2, "attributes": [attribute(21, 7, "small"), attribute(22, None), thing(20, "dog"), {}, "text"]},
        {"image_id": 2, "attributes": [{**thing(20, "dog"), "attributes": "wet"}, attribute(88), attribute(88, " ")]},
        {"image_id": 1},
    ]
    found = read(tmp_path, content)
    assert [graph.phrases for graph in found.graphs] == [("man", "brown horse", "tree"), ("dog", "small dog", "pony")]
    assert [(item.what, item.id, item.reason) for item in found.rejected] == [
        ("attribute", "99", "unknown object"),
        ("attribute", "20", "unknown object"),  # of another image
        ("attribute", "21", "malformed"),
        ("attribute", "22", "malformed"),
        ("attribute", "of image 2", "malformed"),
        ("attribute", "of image 2", "malformed"),
        ("attribute", "20", "malformed"),
        ("attribute", "entry 3", "malformed"),
    ]


@pytest.mark.parametrize("file", ["attributes", "objects", "relationships"])
def test_another_file_than_the_one_asked_for_is_refused(tmp_path: Path, content: Content, file: str) -> None:
    for other in {"attributes", "objects", "relationships", "image_data"} - {file}:
        with pytest.raises(
            ValueError, match=rf"{file}\.json: expected entries with image_id and a list '{file}', got 2"
        ):
            read(tmp_path, content | {file: content[other]})


def test_ids_that_were_merged_into_an_object_are_that_object(tmp_path: Path, content: Content) -> None:
    """As versions 1.2 and later tell it: in the objects, or in the end of a relation."""
    content["objects"][0]["objects"][0]["merged_object_ids"] = [110, "111", 11]  # 11 is an object itself
    content["attributes"] = [{"image_id": 1, "attributes": [attribute(110, "tall")]}]
    other = relation(2, 12, "near", 777)
    other["object"]["merged_object_ids"] = [10]
    content["relationships"] = [
        {"image_id": 1, "relationships": [relation(1, 111, "ON", 11), other, relation(3, 10, "on", 110)]},
        {"image_id": 2, "relationships": [relation(4, 110, "on", 21)]},
    ]
    found = read(tmp_path, content)
    assert relations_in_words(found)["1"] == [("tall man", "on", "horse"), ("tree", "near", "tall man")]
    assert tally(found.rejected) == {"relation: unknown object": 1, "relation: with itself": 1}


def test_an_object_without_a_synset_has_that_of_its_name(tmp_path: Path, content: Content) -> None:
    things = content["objects"][1]["objects"]
    things += [thing(23, "dog", "dog.n.01"), thing(24, "dog", "frump.n.01"), thing(25, "dog", "dog.n.01")]
    things += [thing(26, "cat", "b"), thing(27, "cat", "a"), thing(28, "cat")]
    content["relationships"][0]["relationships"][0]["synsets"] = ["on.r.01"]
    content["relationships"][1]["relationships"] += [relation(5, 20, "on", 22)]
    found = read(tmp_path, content)
    classes = [[found.classes[number] for number in graph.classes] for graph in found.graphs]
    assert classes[0] == ["man", "horse.n.01", "tree"]
    assert classes[1] == [
        *("dog.n.01", "dog.n.01", "horse.n.01", "dog.n.01", "frump.n.01", "dog.n.01"),
        *("b", "a", "a"),  # as often: the first in alphabetical order
    ]
    assert found.predicates == (NONE, "near", "on.r.01")
    assert found.without_synset == {
        "objects without a synset, given that of their name": 3,
        "objects without a synset, known by name": 2,
        "relations without a synset, given that of their name": 1,
        "relations without a synset, known by name": 3,
    }
    assert read(tmp_path, content, Filter(by="name")).without_synset == {}


def test_marks_and_numbers_that_are_none_change_nothing(tmp_path: Path, content: Content) -> None:
    plain = read(tmp_path, content)
    content["objects"][0]["objects"][0]["w"] = float("nan")
    marked = {name: "\ufeff" + json.dumps(value) for name, value in content.items()}
    assert read(tmp_path, marked) == plain


def test_odd_ids_and_half_characters_spoil_only_themselves(tmp_path: Path, content: Content) -> None:
    plain = read(tmp_path, content)
    content["image_data"] += [
        {"image_id": 10**30},
        {"image_id": float("nan")},
        {"image_id": 5.0, "url": "x/\udce9.jpg"},
    ]
    content["objects"][0]["objects"] += [thing(10**30, "sky"), thing(70, "\ud83d"), {**thing(71, "x"), "names": 7}]
    found = read(tmp_path, content)
    assert found.graphs == plain.graphs
    assert tally(found.rejected) == {
        "image: malformed": 2,
        "image: no object": 1,
        "object: malformed": 1,
        "object: no name": 2,
    }


def test_alias_files_with_a_mark_are_read_and_in_other_encodings_named(tmp_path: Path) -> None:
    file = tmp_path / "alias.txt"
    for content in (b"\xef\xbb\xbfhuman,man\r\ndog,puppy\r\n", "\ufeffhuman,man\ndog,puppy".encode("utf-16-le")):
        file.write_bytes(content)
        assert read_aliases(file) == {"man": "human", "puppy": "dog"}
    file.write_bytes(b"dog,puppy\ncaf\xe9,coffee\n")
    with pytest.raises(ValueError, match=rf"{file} line 2"):
        read_aliases(file)


def test_embedded_world_is_read_without_loss(world: SmallWorld) -> None:
    folder = world.source / "visual_genome" / "train"
    names = ("objects", "attributes", "relationships", "image_data")
    found = read_files(Files(*(folder / f"{name}.json" for name in names)))
    assert len(found.graphs) == 72
    assert found.rejected == []
    assert not any(found.skipped.values())
    assert set(found.predicates) == {NONE, "left of", "right of", "above", "below", "inside", "touching"}
