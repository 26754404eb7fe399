"""Damage to files, fixed by what is damaged and the number of the case, and the check of what reading them gives."""

from __future__ import annotations

import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

SECONDS = 30.0  # a case that takes longer hangs
MEMORY = 2 * 2**30  # bytes of address space that a case may take


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Half of the time one byte is another, so that much can still be read; and half of these have one other bit."""
    changed = bytearray(content)
    for place in draw.sample(range(len(content)), min(len(content), draw.randint(1, draw.choice((1, 8))))):
        changed[place] ^= draw.choice((1 << draw.randrange(8), draw.randrange(1, 256)))
    return bytes(changed)


def flipped_at_an_end(content: bytes, draw: random.Random) -> bytes:
    """Flip bits where binary formats keep lengths: in the first or last 64 bytes."""
    start = draw.choice((0, max(0, len(content) - 64)))
    return content[:start] + flipped(content[start : start + 64], draw) + content[start + 64 :]


def lacking_a_slice(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.randint(1, 40) :]


def with_a_slice_twice(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[: start + draw.randint(1, 40)] + content[start:]


def emptied(content: bytes, draw: random.Random) -> bytes:
    return b""


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """Zeros from some place to the end, as a file system leaves what was not flushed."""
    kept = draw.randrange(len(content))
    return content[:kept] + bytes(len(content) - kept)


OTHERS = (b"{}", b"[]", b"null", b"0", b'""', b"[" * 20_000, b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff" * 64, b"a: [1\n")


def another_kind(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(OTHERS)


BINARY = (cut, flipped)
TEXT = (cut, flipped, lacking_a_slice, with_a_slice_twice)
FOLDER = "a folder in its place"
WAYS = (*TEXT, flipped_at_an_end, emptied, zeroed, another_kind, FOLDER)
WEIGHTS = (3, 4, 2, 2, 3, 1, 1, 2, 1)


def damaged(kind: str, case: int, content: bytes, ways: Sequence[Callable[..., bytes]]) -> bytes:
    """The content with the damage of a case, which is always another."""
    draw = random.Random(f"{kind} {case}")
    return draw.choice(ways)(content, draw)


@dataclass(frozen=True)
class OwnFiles:
    """Files that groundray wrote, and how it reads them.

    Attributes:
        pristine: a folder with the files, which is copied for each case.
        files: names of those that are damaged.
        read: reads a copy, and returns what was read, to compare. It calls its second argument with a text for each
            damage that it repairs or passes over.
        silent: a difference without a note is allowed: the files are of an earlier version and have no seals.
    """

    kind: str
    pristine: Path
    files: Sequence[str]
    read: Callable[[Path, Callable[[str], None]], Any]
    silent: bool = False

    def check(self, cases: range, work: Path) -> Counter[str]:
        """Damage a file for each case and read it.

        Each case is refused by an error of ours that names the file, or reads the same as the whole file, or names the
        file in a note. It takes neither long nor much memory.

        Returns:
            The number of cases by outcome: `refused`, `noted`, `equal`.
        """
        outcomes: Counter[str] = Counter()
        copy = work / self.pristine.name
        expected = self._fresh(copy) or self.read(copy, _unexpected)
        for case in cases:
            draw = random.Random(f"{self.kind} {case}")
            name = self.files[case % len(self.files)]
            way = draw.choices(WAYS, WEIGHTS)[0]
            self._fresh(copy)
            file, notes = copy / name, []
            content = file.read_bytes()
            if isinstance(way, str):
                file.unlink()
                file.mkdir()
            else:
                file.write_bytes(way(content, draw))
            changed = file.is_dir() or file.read_bytes() != content
            started, refusal, found = time.monotonic(), "", None
            try:
                with limited_memory():
                    found = self.read(copy, notes.append)
            except (ValueError, OSError) as error:
                refusal = str(error) or repr(error)
            except BaseException as error:
                error.add_note(self._case(case, name, way))
                raise
            described = self._case(case, name, way)
            assert time.monotonic() - started < SECONDS, described
            if refusal:
                assert self._names(refusal, copy, name), f"{described}: {refusal}"
            noted = any(self._names(note, copy, name) for note in notes)
            assert refusal or noted or found == expected or self.silent, f"{described}: read as {found}"
            assert changed or not (refusal or notes), f"{described}: nothing is damaged, but {refusal or notes}"
            outcomes["refused" if refusal else "noted" if noted else "equal"] += 1
        return outcomes

    def _fresh(self, copy: Path) -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.pristine, copy)

    def _names(self, text: str, copy: Path, name: str) -> bool:
        """True if a message names a file: by its path, or where the reader is another library by its folder."""
        file = copy / name
        return str(file) in text or (str(file.parent) in text and file.parent != copy) or f"{copy}'" in text

    def _case(self, case: int, name: str, way: Any) -> str:
        return f"{self.kind}, case {case}: {name}, {getattr(way, '__name__', way)}"


def _unexpected(note: str) -> None:
    raise AssertionError(f"a note on whole files: {note}")


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit the address space inside the context: a length that is damaged must not take all memory."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def canonical(content: bytes) -> str | None:
    """Parse JSON; None if the text is not JSON."""
    try:
        return json.dumps(json.loads(content), sort_keys=True)
    except ValueError:
        return None


def linear(seed: int) -> tuple[nn.Linear, optim.Optimizer]:
    """A tiny model and its Adam after a step: what the checkpoints hold that are damaged."""
    torch.manual_seed(seed)
    model = nn.Linear(2, 2)
    optimizer = optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer
