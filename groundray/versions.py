"""The versions that results depend on: of groundray's own code, of Python and of the libraries."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy", "ray", "pyarrow")


@functools.cache
def code_version() -> str:
    """Return the commit of the checkout that groundray is imported from, with `-dirty` if tracked files differ.

    Outside a checkout, as in an image or a Ray job's copy, return the version of the installed package.
    """
    folder = Path(__file__).parent
    # a package installed below someone else's checkout is not tracked there
    tracked = _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else ""
    return commit or version_of("groundray")


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries, by name."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in LIBRARIES}


def version_of(package: str) -> str:
    """Return the version of an installed package, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of a git command; empty if it fails, or git is missing."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
