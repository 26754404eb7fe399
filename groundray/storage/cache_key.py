"""Keys of caches: trunk features, indexes of images, and vectors of texts.

A key is a hash of all that a cached number depends on: its inputs, the code that computes it, the libraries, and the
arithmetic. Whatever changes, the cache is computed anew under another key, and an old one is never read for a new one.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

from PIL import features

from groundray import arithmetic
from groundray.versions import version_of

FORMAT = 1  # of keys and cached files; increment to have every cache computed anew
LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy")
DECODERS = ("jpg", "libjpeg_turbo", "zlib", "webp", "avif", "jpg_2000", "libtiff", "littlecms2")  # pillow's own

# Two threads that make syntax trees at the same time are a SystemError in Python 3.11: "recursion depth mismatch".
_PARSING = threading.Lock()


def cache_key(inputs: Any, code: Sequence[ModuleType | Callable[..., Any]], device: str, stored: str) -> str:
    """Return a hash of what cached numbers depend on, as 64 hexadecimal digits.

    Args:
        inputs: fingerprints of data and weights, and options; anything that JSON can hold.
        code: the modules and functions that compute the numbers, in float32 (`arithmetic.using`).
        device: kind of device that they are computed on, `cpu` or `cuda`; a device's number does not count.
        stored: number format in which they are kept, such as `bfloat16`.
    """
    with _PARSING:
        digests = {part.__name__: code_digest(inspect.getsource(part)) for part in code}
    depends_on = {
        "format": FORMAT,
        "inputs": inputs,
        "code": digests,
        "libraries": library_versions(),
        "arithmetic": {**arithmetic.described(device), "computed": "float32", "stored": stored},
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


@lru_cache(256)  # keys with and without a data set have the same code
def code_digest(source: str) -> str:
    """Return a hash of Python code that ignores comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def library_versions() -> dict[str, str | None]:
    """Return the versions of the libraries that decode and compute.

    The build of a version (`+cpu`, `+cu128`) does not count: machines of a cluster may have different builds, and the
    kind of device counts by itself.
    """
    versions: dict[str, str | None] = {name: version_of(name).partition("+")[0] for name in LIBRARIES}
    return versions | {f"pillow.{name}": features.version(name) for name in DECODERS}
