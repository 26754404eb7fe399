"""YAML and JSON in which a key stands twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundray.config import SettingsError, load, parse_yaml
from groundray.runtime.tune.search_space import Space


@pytest.mark.parametrize(
    ("text", "again", "first", "name"),
    [
        ("run: {name: a}\nstages: [language]\nrun: {name: b}\n", 3, 1, "run"),
        ("run:\n  name: a\n  seed: 1\n  name: b\n", 4, 2, "run.name"),
        ("a:\n- b: 1\n- c: 1\n  d: 2\n  c: 3\n", 5, 3, "a.1.c"),
        ("yes: 1\ntrue: 2\n", 2, 1, "true"),
        ("x: &x {k: *x, k: 2}\n", 1, 1, "x.k"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(text: str, again: int, first: int, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^f\.yaml line {again}: {name} stands again \(first in line {first}\)"):
        parse_yaml(text, "f.yaml")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (
            "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\nc: *a\n",
            {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 1, "y": 2}},
        ),
        ("1: a\n'1': b\n", {1: "a", "1": "b"}),
        ("a: {x: 1}\nb: {x: 1}\n", {"a": {"x": 1}, "b": {"x": 1}}),
        ("", None),
        ("1e-3", "1e-3"),
    ],
)
def test_merged_keys_aliases_and_equal_keys_of_other_mappings_are_read(text: str, content: object) -> None:
    assert parse_yaml(text, "f.yaml") == content


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: 2020-13-01", "? [1, 2]\n: 3", "x: !!python/object:os.system 1"])
def test_what_is_not_yaml_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^f\.yaml is not YAML: "):
        parse_yaml(text, "f.yaml")


def test_a_settings_file_and_a_section_given_as_json_have_each_key_once(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    printed = load("demo").to_yaml()
    file.write_text(f"{printed}grounding:\n  epochs: 1\n")
    lines = printed.splitlines()
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert str(caught.value).startswith(
        f"{file} line {len(lines) + 1}: grounding stands again (first in line {lines.index('grounding:') + 1})"
    )
    with pytest.raises(SettingsError, match="trunk stands again"):
        load("demo", ["--grounding.trains", '{"trunk": true, "trunk": false}'])
    with pytest.raises(SettingsError, match="trunk stands again"):
        load("demo", ['--grounding={"trains": {"trunk": true, "trunk": false}}'])


def test_a_swept_value_has_each_key_once() -> None:
    with pytest.raises(SettingsError, match="a stands again"):
        Space.parse("grounding.trains=choice:a: 1\na: 2")
