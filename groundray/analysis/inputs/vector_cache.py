"""Vectors kept on disk, so that the same command gives the same bits again, and at once.

A file is named after what its vectors follow from: the embedder's digest (weights, tokenizer, options) and the texts in
their order. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from groundray.analysis.inputs.embedding import Embed, Embedder, Vectors
from groundray.storage.folder import Folder

FORMAT = 1
VECTORS, SEAL = "vectors", "sha256"


@dataclass(frozen=True)
class Cache:
    """Keeps vectors in a folder.

    Attributes:
        note: hears what went wrong with a file; whatever does, the vectors are made.
    """

    folder: Folder
    note: Callable[[str], None]

    @staticmethod
    def at(url: str | Path | None, note: Callable[[str], None]) -> Cache:
        """The cache at a path or URL; by default `$XDG_CACHE_HOME/groundray` or `~/.cache/groundray`."""
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Cache(Folder.at(url or f"{home}/groundray") / "embeddings", note)

    def embed(self, embedder: Embedder, texts: Sequence[str], make: Embed = Embedder.embed) -> Vectors:
        """The vector of each text, kept or made.

        Args:
            make: makes those that are not there.
        """
        key = hashlib.sha256(json.dumps([FORMAT, embedder.digest, *texts]).encode()).hexdigest()
        name = f"{key}.safetensors"
        try:
            return self._read(name, len(texts))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, SafetensorError) as error:
            self.note(f"{self.folder}/{name} is damaged ({error}) and is made anew")
        vectors = make(embedder, texts)
        content = safetensors.numpy.save({VECTORS: vectors, SEAL: _seal(vectors)})
        try:
            self.folder.make().write_bytes(name, content)
        except OSError as error:
            self.note(f"{self.folder} keeps no vectors ({error}): give another cache folder")
        return vectors

    def _read(self, name: str, texts: int) -> Vectors:
        found = safetensors.numpy.load(self.folder.read_bytes(name))
        if found.keys() != {VECTORS, SEAL} or len(found[VECTORS]) != texts:
            raise ValueError("it holds something else")
        if not np.array_equal(found[SEAL], _seal(found[VECTORS])):
            raise ValueError("it does not hold what its checksum was made of")
        return found[VECTORS]


def _seal(vectors: Vectors) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(vectors).data).digest(), dtype=np.uint8)
