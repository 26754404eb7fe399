"""Loads models with `transformers`, one at a time in a process.

While it loads, `transformers` replaces functions of `torch.nn.init` and methods of its own classes, for all threads. Of
two threads that load at once, the second puts back what the first had replaced: from then on no model of the process
would tie its output matrix to its word embeddings.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

_LOADING = threading.RLock()


def from_pretrained(kind: Any, path: str | None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return a model in float32 and the report of its loading, by `kind.from_pretrained`.

    The model is independent of its files: `transformers` leaves weights in a file that is mapped into memory. A file
    that is overwritten where it is, as by `cp`, would change them, or end the process with SIGBUS.

    Args:
        kind: a class of models.
        path: folder or hub name; None for weights in `state_dict`.

    Raises:
        Exception: of any kind, as `transformers` has it.
    """
    with _LOADING:
        model, report = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True, **options)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model, report
