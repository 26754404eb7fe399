"""Captions as tables write them: a text, a list of texts, or such a list written as text."""

from __future__ import annotations

import ast
import json
from typing import Any

TEXT_KEYS = ("raw", "caption", "text")  # of an object in a list, such as a `sentence` of Karpathy's splits


def caption_list(value: Any) -> list[Any]:
    """Return the captions of a cell, which may be none. A list of JSON or Python in a text, as in CSV, is a list."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip()[:2] in ("['", '["'):
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(parsed, list) and all(isinstance(caption, str) for caption in parsed):
                return parsed
    if not isinstance(value, list):
        return [value]
    return [_text_of(entry) if isinstance(entry, dict) else entry for entry in value]


def _text_of(entry: dict[Any, Any]) -> Any:
    return next((entry[key] for key in TEXT_KEYS if key in entry), entry)
