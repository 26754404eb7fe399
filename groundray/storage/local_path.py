"""Local paths as a user gives them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a local path with `~` or `~USER` at its beginning replaced by that user's home folder.

    Raises:
        ValueError: there is no such user, or the user has no home folder.
    """
    if not str(path).startswith("~"):  # Path leaves out the ./ of ./~name, and would look for a user
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{path}: expected ~ or ~USER of a user with a home folder, got another: give the whole path, or "
            f"./{path} for a file of this name here"
        ) from None
