"""Vectors kept on disk, so that a repeated command gives the same bits without computing them.

A file's name is a hash of all that its vectors depend on: the model's digest (of its weights, tokenizer and options, or
of its file of word vectors), the texts in order, the code, the libraries and the arithmetic (`storage/cache_key.py`).
The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from groundray.analysis.inputs.text_model import Embed, TextModel, Vectors, embed_here
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder
from groundray.storage.user_cache import user_cache

VECTORS, SEAL = "vectors", "sha256"


@dataclass(frozen=True)
class Cache:
    """Keeps vectors in a folder.

    Attributes:
        note: called with a line for each file that cannot be read or written; vectors are then computed.
    """

    folder: Folder
    note: Callable[[str], None]

    @staticmethod
    def at(url: str | Path | None, note: Callable[[str], None]) -> Cache:
        """Return the cache at a path or URL, by default in the user's cache (`storage/user_cache.py`)."""
        return Cache(user_cache(url) / "embeddings", note)

    def embed(self, model: TextModel, texts: Sequence[str], make: Embed = embed_here, device: str = "cpu") -> Vectors:
        """Return the vector of each text, from the cache or from `make`.

        Args:
            make: computes vectors that the cache lacks.
            device: kind of device that it computes on, `cpu` or `cuda`.
        """
        key = cache_key([model.digest, *texts], code=model.code, device=device, stored="float32")
        name = f"{key}.safetensors"
        try:
            return self._read(name, len(texts))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, SafetensorError) as error:
            self.note(f"{self.folder}/{name} is damaged ({error}) and is computed again")
        vectors = make(model, texts)
        content = safetensors.numpy.save({VECTORS: vectors, SEAL: _seal(vectors)})
        try:
            self.folder.make().write_bytes(name, content)
        except OSError as error:
            self.note(f"{self.folder} cannot keep vectors ({error}): choose another folder with --cache")
        return vectors

    def _read(self, name: str, texts: int) -> Vectors:
        tensors = safetensors.numpy.load(self.folder.read_bytes(name))
        if tensors.keys() != {VECTORS, SEAL} or len(tensors[VECTORS]) != texts:
            raise ValueError("unexpected content")
        if not np.array_equal(tensors[SEAL], _seal(tensors[VECTORS])):
            raise ValueError("its checksum differs")
        return tensors[VECTORS]


def _seal(vectors: Vectors) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(vectors).data).digest(), dtype=np.uint8)
