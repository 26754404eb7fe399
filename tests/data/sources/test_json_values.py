"""JSON lists are read like `json.loads` reads them, in blocks of any size, and with what other programs put in."""

from __future__ import annotations

import codecs
import json
import math
from pathlib import Path
from typing import Any

import pytest

from groundray.data.sources import json_values
from groundray.data.sources.json_values import as_integer, is_text, read_json_list, read_json_member

ENTRIES: list[Any] = [
    {"image_id": 1, "objects": [{"w": 1.5e3, "name": 'a "quoted" \\ word, [with] {signs}'}, {}]},
    12345678901234567,
    -1.25,
    "caf\u00e9 \U0001f600 \u2028",
    [[], [None, True, False]],
    "NaN, Infinity",
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii", [True, False])
def test_blocks_of_any_size_give_the_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None, ascii: bool
) -> None:
    monkeypatch.setattr(json_values, "BLOCK", block)
    (tmp_path / "a.json").write_text(" \n" + json.dumps(ENTRIES, indent=indent, ensure_ascii=ascii) + "\r\n")
    assert list(read_json_list(tmp_path / "a.json")) == ENTRIES


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_members_of_an_object_are_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_values, "BLOCK", block)
    members = {"info": {"a": [1, {}]}, "empty": [], "images": ENTRIES, "n": -1.5, "more": [1, 2], "last": "x"}
    for content in (members, dict(reversed(members.items()))):
        (tmp_path / "a.json").write_text(json.dumps(content, indent=indent))
        for key in ("images", "empty", "more"):
            assert list(read_json_member(tmp_path / "a.json", key, "captions")) == members[key]
    for content, key in ((members, "info"), (members, "none"), ({}, "images"), ([], "images")):
        (tmp_path / "a.json").write_text(json.dumps(content, indent=indent))
        with pytest.raises(ValueError, match=f"expected captions with a list '{key}', got none"):
            list(read_json_member(tmp_path / "a.json", key, "captions"))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (b"", "utf-8"),
    ],
)
def test_marks_and_empty_lists_are_read(tmp_path: Path, mark: bytes, encoding: str) -> None:
    for entries in ([], ENTRIES):
        (tmp_path / "a.json").write_bytes(mark + json.dumps(entries).encode(encoding))
        assert list(read_json_list(tmp_path / "a.json")) == entries


def test_numbers_that_are_none_are_read_as_python_writes_them(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"w": math.nan}, math.inf, -math.inf]))
    first, second, third = read_json_list(tmp_path / "a.json")
    assert math.isnan(first["w"])
    assert (second, third) == (math.inf, -math.inf)


@pytest.mark.parametrize("block", [1, 2**20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a JSON list with one entry per image, got ''"),
        (b'{"a": 1}', "expected a JSON list with one entry per image, got '{'"),
        (b"[", "not JSON after 0 entries"),
        (b"[1, 2", "not JSON after 2 entries"),
        (b"[1, 2,", "not JSON after 2 entries"),
        (b"[1, 2,]", "not JSON after 2 entries"),
        (b"[1 2]", "not JSON after 1 entries"),
        (b"[1] 2", "expected nothing after the list"),
        (b'[1, {"a": "b]', "not JSON after 1 entries"),
        (b"[1, {'a': 2}]", "not JSON after 1 entries"),
        (b'[1, "\xff"]', "not JSON after .* entries.*can't decode byte 0xff"),
        (b"[" + b"9" * 9999 + b"]", "not JSON after 0 entries.*digits"),
        (b"[" * 99_999, "not JSON after 0 entries"),
    ],
)
def test_what_is_no_list_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, content: bytes, message: str
) -> None:
    monkeypatch.setattr(json_values, "BLOCK", block)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/a\.json.*{message}"):
        list(read_json_list(tmp_path / "a.json"))


def test_ids_are_numbers_or_text_of_digits() -> None:
    assert [as_integer(value) for value in (7, "7", "0042", 391895.0, -1)] == [7, 7, 42, 391895, -1]
    for value in (None, True, "", "7.5", "seven", 7.5, math.nan, math.inf, 2**64, "9" * 30, [7], {}):
        assert as_integer(value) is None, value


def test_half_an_emoji_is_no_text() -> None:
    assert is_text("\U0001f600 caf\u00e9")
    assert not any(map(is_text, ("\ud83d", "caf\udce9", b"text", None, 7)))
