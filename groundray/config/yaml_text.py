"""Parses YAML in which each key may stand once: PyYAML alone keeps the last of two equal keys, and drops the first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from groundray.config.settings import SettingsError

MERGE = "tag:yaml.org,2002:merge"


def parse_yaml(text: str | bytes, origin: str) -> Any:
    """Return the content of a YAML document: dicts, lists, strings, numbers, dates, None.

    A key that `<<` merges in may stand in the mapping too, which overrides it.

    Args:
        origin: where the text is from, for messages.

    Raises:
        SettingsError: the text is not YAML, or a key stands twice in a mapping; the message gives both lines.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            for name, first, again in _repeated(loader, node, "", set()):
                raise SettingsError(
                    f"{origin} line {again}: {name} stands again (first in line {first}): keep one of the two"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except SettingsError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML does not wrap errors of the values that it makes, as of a date in month 13 or a number of 5,000 digits
        raise SettingsError(f"{origin} is not YAML: {error}") from None


def check_json_keys(text: str, origin: str) -> None:
    """Raise SettingsError if a key stands twice in an object of JSON; any other fault is left to the parser.

    Args:
        origin: where the text is from, for messages.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if repeated := [key for number, key in enumerate(keys) if key in keys[:number]]:
            raise SettingsError(f"{origin}: {repeated[0]} stands again in {text!r}: keep one of the two")
        return dict(pairs)

    try:
        json.loads(text, object_pairs_hook=checked)
    except SettingsError:
        raise
    except (ValueError, RecursionError):
        return


def _repeated(
    loader: yaml.SafeLoader, node: yaml.Node, prefix: str, visited: set[int]
) -> Iterator[tuple[str, int, int]]:
    """Yield (dotted name, line of the first, line of the other) of each key that stands again in its mapping."""
    if id(node) in visited:  # an alias
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _repeated(loader, item, f"{prefix}{number}.", visited)
    elif isinstance(node, yaml.MappingNode):
        first: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = f"{prefix}{key.value}" if isinstance(key, yaml.ScalarNode) else prefix
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                same = loader.construct_object(key)  # `yes` and `true` are one key
                if same in first:
                    yield name, first[same], line
                first.setdefault(same, line)
            yield from _repeated(loader, value, f"{name}.", visited)
