"""Patterns that stand for many files: ranges and lists in braces, globs, folders; on local paths and in stores."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from groundray.storage.file_names import escaped, is_encodable
from groundray.storage.folder import Folder
from groundray.storage.local_path import expanded

BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<list>[^{}]*,[^{}]*))\}")
MAX_FILES = 1_000_000


class Matched(NamedTuple):
    """What patterns stand for.

    Attributes:
        files: absolute paths and URLs. Those of braces may not exist.
        passed_over: number of other files in the folders that were listed.
    """

    files: list[str]
    passed_over: int


def match_files(patterns: Iterable[str], endings: tuple[str, ...]) -> Matched:
    """Return the files of patterns, each once: `cc-{000..331}.tar`, `cc-{a,b}.tar`, `cc-*.tar`, a folder, or a file.

    The order is that of the patterns and their ranges; globs and folders are in alphabetical order. Only globs and
    folders are listed. A URL that has none of the endings is that of a folder.

    Args:
        endings: of the files to take from globs and folders, such as `.tar`.

    Raises:
        ValueError: a range has no use, or a name is not UTF-8.
        OSError: a store cannot be listed.
    """
    files: dict[str, None] = {}
    passed_over = 0
    for name in chain.from_iterable(map(expand_braces, patterns)):
        listed = _list(name, endings)
        found = [name] if listed is None else [file for file in listed if file.endswith(endings)]
        passed_over += len(listed or found) - len(found)
        for file in found:
            path = file if "://" in file else str(expanded(file).absolute())
            if not is_encodable(path):
                raise ValueError(f"expected a name in UTF-8, got {escaped(path)}: rename it")
            files[path] = None
    return Matched(list(files), passed_over)


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern with `{000..331}` or `{a,b}` stands for, as a shell expands it.

    Raises:
        ValueError: a range goes down, or there are more than MAX_FILES names.
    """
    names = [pattern]
    while match := BRACES.search(names[0]):
        count = len(names) * (int(match["last"]) - int(match["first"]) + 1 if match["first"] else 1)
        if not 0 < count <= MAX_FILES:
            raise ValueError(f"expected a range such as {{000..331}} of at most {MAX_FILES:,} files, got {match[0]}")
        names = [new for name in names for new in _expand(name)]
    return names


def _expand(name: str) -> list[str]:
    """Return the names for the values of the first braces."""
    match = BRACES.search(name)
    assert match
    first, last = match["first"], match["last"]
    if first is None:
        values = match["list"].split(",")
    else:
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        values = [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    return [name[: match.start()] + value + name[match.end() :] for value in values]


def _list(name: str, endings: tuple[str, ...]) -> list[str] | None:
    """Return the files of a glob or a folder in alphabetical order, or None for a file."""
    if "://" in name:
        return _list_store(name, endings)
    path = expanded(name)
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*") if file.is_file())
    if glob.has_magic(name) and not path.exists():
        return sorted(
            str(file) for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file()
        )
    return None


def _list_store(url: str, endings: tuple[str, ...]) -> list[str] | None:
    segments = url.split("/")
    # the scheme's and the bucket's segments are no pattern
    start = next((at for at, text in enumerate(segments) if at > 2 and glob.has_magic(text)), None)
    if start is None and url.endswith(endings):
        return None
    base, pattern = "/".join(segments[:start]).rstrip("/"), segments[start:] if start else []
    folder = Folder.at(base)
    names = folder.sizes() if len(pattern) == 1 else folder.files()
    return [f"{base}/{name}" for name in sorted(names) if not pattern or _matches(name.split("/"), pattern)]


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatchcase, name, pattern))


def short_names(files: Sequence[str], endings: tuple[str, ...]) -> dict[str, str]:
    """Return the files by names that are unlike each other: without the ending, and with as few folders as that takes.

    `a/00.tar` and `a/01.tar` are `00` and `01`; `a/00.tar` and `b/00.tar` are `a/00` and `b/00`.
    """
    for cut in (True, False):
        ending = re.compile("|".join(f"{re.escape(end)}$" for end in endings) if cut else "(?!)")
        paths = [ending.sub("", file).split("/") for file in files]
        for depth in range(1, max(map(len, paths), default=0) + 1):
            names = {"/".join(path[-depth:]): file for path, file in zip(paths, files, strict=True)}
            if len(names) == len(files):
                return names
    return {file: file for file in files}
