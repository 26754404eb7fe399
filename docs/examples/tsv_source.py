"""A source of your own: captions from a TSV file, as shards of kind `captions`. A line: file name, tab, caption.

python docs/examples/tsv_source.py images captions.tsv data/mine
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundray.data.image_decoder import UnusableImage
from groundray.data.schema import INDEX, REJECTED, Dataset
from groundray.data.shards import write_shards
from groundray.data.sources.image_files import check_image
from groundray.data.sources.rejected import Rejected
from groundray.storage.atomic import atomic_folder
from groundray.storage.folder import Folder


def read_captions(file: Path, rejected: list[Rejected]) -> dict[str, list[str]]:
    """Return the captions of each file name; lines that cannot be used are added to `rejected`."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name, tab, caption = line.partition("\t")
        if not tab or not caption.strip():
            rejected.append(
                Rejected("line", f"{file.name}:{number}", "malformed", f"expected NAME<tab>TEXT, got {line!r}")
            )
            continue
        captions.setdefault(name, []).append(caption.strip())
    return captions


def rows(images: Folder, captions: dict[str, list[str]], rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """Yield a row of kind `captions` for each usable image; the others are added to `rejected`."""
    for name, texts in captions.items():
        try:
            image = check_image(images, [name])  # reads the file and decodes it in full
        except UnusableImage as error:
            rejected.append(Rejected("image", name, error.reason, str(error)))
            continue
        yield {**image.row(name), "captions": texts}


def prepare(images: str, file: str, out: str) -> Dataset:
    """Write the shards to a folder or URL, whole or not at all."""
    rejected: list[Rejected] = []
    captions = read_captions(Path(file), rejected)
    with atomic_folder(Folder.at(out), marker=INDEX) as folder:
        made = rows(Folder.at(images), captions, rejected)
        write_shards(folder, "captions", made, counts={}, source={"source": "tsv", "file": file})
        lines = "".join(json.dumps(one.as_json()) + "\n" for one in rejected)
        folder.write_bytes(REJECTED, lines.encode())
    return Dataset.open(out, "captions")


if __name__ == "__main__":
    dataset = prepare(*sys.argv[1:4])
    print(f"{dataset.folder}: {dataset.rows} images")
