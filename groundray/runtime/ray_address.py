"""The environment variable that names a Ray cluster; it is read here without importing Ray."""

from __future__ import annotations

import os

ADDRESS = "RAY_ADDRESS"
LOCAL = "local"  # the value that starts a cluster on this machine, as does none


def given_address() -> str | None:
    """Return the value of RAY_ADDRESS if it names a cluster, which then runs already; None otherwise."""
    given = os.environ.get(ADDRESS, "")
    return None if given in ("", LOCAL) else given
