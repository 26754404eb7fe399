"""The text of captions: what is usable, and which ones say the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from groundray.data.sources.json_values import is_text


def caption_problem(caption: Any) -> tuple[str, str] | None:
    """Return why a value is no usable caption, as the reason and the detail of a rejected item; None if it is one."""
    if not is_text(caption):
        return "malformed", f"expected a caption, got {short(caption)}"
    if not caption[:1].isalnum() and not any(letter.isalnum() for letter in caption):
        return "empty", f"the caption is {short(caption)}"
    return None


def cleaned(caption: str) -> str:
    """Return a caption with single spaces."""
    return " ".join(caption.split())


def distinct(captions: Iterable[str]) -> list[str]:
    """Return the first of all captions that are equal but for case, punctuation and spaces."""
    first: dict[str, str] = {}
    for caption in captions:
        words = re.findall(r"\w+", unicodedata.normalize("NFKC", caption).casefold())
        first.setdefault(" ".join(words), caption)
    return list(first.values())


def short(value: Any) -> str:
    """Return a value for messages, in at most 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
