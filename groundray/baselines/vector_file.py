"""What a baseline writes: a folder with the file of vectors and its card, whole or not at all.

vectors.parquet   words and vectors (`analysis/inputs/vector_files.py`)
README.md         the card: method, data, counts, settings, command, versions, and the digest of the vectors
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from groundray.analysis.inputs.vector_files import write_vectors
from groundray.baselines.method import Method
from groundray.baselines.words import WordVectors
from groundray.credentials import redacted
from groundray.data.schema import Dataset
from groundray.storage.atomic import atomic_folder, is_empty, recover
from groundray.storage.folder import Folder
from groundray.versions import code_version, library_versions, version_of

VECTORS, CARD = "vectors.parquet", "README.md"


@contextlib.contextmanager
def replaced(out: Folder, overwrite: bool) -> Iterator[Folder]:
    """Yield an empty folder that replaces `out` when the block ends without an exception.

    Raises:
        ValueError: `out` holds something else, or vectors and `overwrite` is not given; before the block begins.
        OSError: it cannot be written, before the block begins; or another process writes there.
    """
    if out.filesystem.get_file_info(out.path).is_file:
        raise ValueError(f"--out: expected a folder, got the file {out}: give another")
    _check_content(out, overwrite)
    with atomic_folder(out, CARD) as folder:
        yield folder


def _check_content(out: Folder, overwrite: bool) -> None:
    recover(out, CARD)
    if is_empty(out):
        return
    names = out.names()
    if set(names) - {VECTORS, CARD}:
        raise ValueError(
            f"--out: expected an empty folder or one of a baseline, got {out} with {', '.join(sorted(names)[:5])}: "
            "give another"
        )
    if not overwrite:
        raise ValueError(f"--out: {out} has vectors already: give another folder, or --overwrite")


def write(
    folder: Folder,
    made: WordVectors,
    method: Method,
    datasets: Sequence[Dataset],
    settings: Mapping[str, Any],
    command: str,
) -> None:
    """Write vectors and their card to a folder.

    Args:
        settings: options of the command, by name.
        command: as it was typed.
    """
    data = [
        {"folder": redacted(str(dataset.folder)), "kind": dataset.kind, "digest": dataset.fingerprint}
        for dataset in datasets
    ]
    known = {name: redacted(value) if isinstance(value, str) else value for name, value in settings.items()}
    metadata = {"about": redacted(method.about), "method": method.name, "data": data, "settings": known}
    write_vectors(str(folder / VECTORS), made.words, made.vectors, metadata)
    folder.write_bytes(CARD, redacted(card(made, method, datasets, settings, command)).encode())


def card(
    made: WordVectors, method: Method, datasets: Sequence[Dataset], settings: Mapping[str, Any], command: str
) -> str:
    """Return the card of vectors, as Markdown."""
    words, width = made.vectors.shape
    content = hashlib.sha256("\n".join(made.words).encode() + np.ascontiguousarray(made.vectors).tobytes())
    sections = [
        f"# {method.name}",
        f"{words:,} words with vectors of {width} dimensions: {method.about}.",
        f"Use: `groundray analyse ... --model {method.name}={VECTORS}`",
        f"## Method\n\n{method.details}\n\nSource: {method.source}",
        "## Data\n\n"
        + _table(
            ("shards", "kind", "rows", "digest"),
            [(str(dataset.folder), dataset.kind, f"{dataset.rows:,}", dataset.fingerprint) for dataset in datasets],
        )
        + "\n\n"
        + _table(("counts", ""), [(what, f"{count:,}") for what, count in made.counts.items()])
        + "".join(f"\n\n{note[0].upper()}{note[1:]}." for note in made.notes),
        "## Settings\n\n" + _table(("option", "value"), [(name, str(value)) for name, value in settings.items()]),
        f"## Command\n\n```sh\n{command}\n```",
        "## Versions\n\n"
        + _table(
            ("what", "version"),
            [
                ("groundray", code_version()),
                *library_versions().items(),
                *((name, version_of(name)) for name in ("scipy", "scikit-learn")),
                ("SHA-256 of words and vectors", content.hexdigest()),
            ],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
