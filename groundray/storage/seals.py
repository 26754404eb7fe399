"""Seals: checksums by which a file that was changed after it was written is told from a whole one.

Three kinds of files are sealed, each in the way that keeps it readable by other programs:

- a JSON document holds the SHA-256 of all its other keys, in the key `sha256`;
- a text with `#` comments (the YAML of a run's settings) begins with a comment that holds the SHA-256 of the rest;
- any other file is sealed by an entry (size and SHA-256) in a sealed JSON document beside it.

SHA-256 is the fastest of hashlib's algorithms on the processors that have instructions for it. Here nothing is
defended against people, who can write a seal themselves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

SEAL = "sha256"  # key of a sealed document: the checksum of all other keys
REST = re.compile(rb'[0-9a-f]{16}"\s*\}\s*$')  # end of a sealed document; no document that may be unsealed ends so
HEADER = "# sha256 of the lines below: "


class Damaged(ValueError):
    """A file is not what was written; the message names it and the repair.

    Attributes:
        file: its path or URL.
        reason: how it differs from what was written.
    """

    def __init__(self, file: str, reason: str, repair: str):
        super().__init__(f"{file} is damaged: {reason}: {repair}")
        self.file, self.reason = file, reason


class OtherVersion(ValueError):
    """A file has another format than this version of groundray reads; it may be whole.

    Attributes:
        number: that of its format; None if it has none.
        written_by: the version of groundray that wrote it; empty if it does not say.
    """

    def __init__(self, number: int | None, written_by: str = ""):
        super().__init__(f"format {number}")
        self.number, self.written_by = number, written_by


class Version(NamedTuple):
    """The format that a document must have: the key that holds its number, and the number."""

    key: str
    number: int


class FileSeal(NamedTuple):
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str

    @staticmethod
    def of(content: bytes) -> FileSeal:
        """Return the seal of a file's content."""
        return FileSeal(len(content), hashlib.sha256(content).hexdigest())

    @staticmethod
    def parse(entry: Mapping[str, Any]) -> FileSeal:
        """Return the seal that `as_json` gave."""
        return FileSeal(entry["bytes"], entry["sha256"])

    def as_json(self) -> dict[str, Any]:
        return self._asdict()

    def compare(self, other: FileSeal) -> str | None:
        """Return how a file with another seal differs from this one; None if it does not."""
        if other.bytes != self.bytes:
            return f"it has {other.bytes} bytes of {self.bytes}"
        return None if other == self else "its checksum is not the recorded one"


def seal_document(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON document with its seal as the last key."""
    plain: dict[str, Any] = json.loads(json.dumps(content))  # keys as text, and tuples as lists: as it will be read
    plain.pop(SEAL, None)
    return {**plain, SEAL: _checksum(plain)}


def open_document(text: bytes, unsealed_keys: str | None = None, version: Version | None = None) -> dict[str, Any]:
    """Return the content of a sealed JSON document, without its seal.

    Args:
        unsealed_keys: accept a document without a seal if each of its keys matches this regular expression. For
            documents that earlier versions wrote without one. The seal's own key must not match, nor its misspellings.
        version: the format to expect. It is checked first, since another version may seal in another way.

    Raises:
        OtherVersion: it has another format.
        ValueError: it is damaged; the message says how.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON ({error})" if text.strip() else "it is empty") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    seal = content.pop(SEAL, None)
    if version:
        _check_version(content, seal, version)
    if seal is not None:
        if seal != _checksum(content):
            raise ValueError("its checksum does not match its content")
    elif unsealed_keys is None or not content or not all(re.fullmatch(unsealed_keys, key) for key in content):
        raise ValueError("it has no checksum")
    elif REST.search(text):
        raise ValueError("its checksum has no key")
    return content


def _check_version(content: dict[str, Any], seal: Any, version: Version) -> None:
    number = content.get(version.key)
    if number == version.number and type(number) is int:
        return
    if seal != _checksum(content):  # is it the number that is damaged?
        if type(number) is not int:
            raise ValueError(f"it has no number {version.key}")
        if seal == _checksum(content | {version.key: version.number}):
            raise ValueError("its checksum does not match its content")
    written_by = content.get("groundray")
    raise OtherVersion(number, written_by if isinstance(written_by, str) else "")


def seal_text(text: str) -> str:
    """Return a text below a comment with its seal."""
    return f"{HEADER}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def open_text(content: bytes) -> str:
    """Return a text without its seal. One that an earlier version wrote has none; it begins with no comment.

    Raises:
        ValueError: it is damaged; the message says how.
    """
    text = content.decode()
    if not text.strip():
        raise ValueError("it is empty")
    if not text.startswith("#"):
        return text
    header, _, rest = text.partition("\n")
    if header != seal_text(rest).partition("\n")[0]:
        raise ValueError("its checksum does not match its content")
    return rest


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
