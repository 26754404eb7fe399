"""Compilation of the parts of the model that consist of many small operations (`scaling.compile`)."""

from __future__ import annotations

import os
import shutil

from groundray.config import Settings, SettingsError
from groundray.model import encoder_layout
from groundray.model.grounded import GroundedModel

COMPILERS = ("g++", "clang++", "c++")


def check_compiler(settings: Settings) -> None:
    """Check that this machine has what compilation needs. torch generates C++, and on a GPU Triton a module in C.

    Raises:
        SettingsError: it has no compiler.
    """
    candidates = (os.environ.get("CXX", ""), *COMPILERS)
    if settings.scaling.compile and not any(shutil.which(name) for name in candidates if name):
        raise SettingsError(
            f"scaling.compile: expected a C++ compiler ({', '.join(COMPILERS)}, or the variable CXX), found none: "
            "install g++ on every node, or set scaling.compile false"
        )


def compile_parts(model: GroundedModel) -> None:
    """Compile the spatial attention and the language encoder in place: names of parameters stay as they are.

    One compilation serves all lengths of texts. Dropout takes torch's own random numbers, so that its masks are those
    of the model that is not compiled.
    """
    for part in (model.visual.attention, *encoder_layout.body(model.language.encoder)):
        part.compile(dynamic=True, options={"fallback_random": True})
