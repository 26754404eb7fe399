"""Tables on disk: what a source's annotations say, joined and ordered without holding it in memory."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE_KB = 16 * 1024  # of pages in memory


class Table:
    """A temporary SQLite database. Its file ends with the folder that it is in.

    Args:
        folder: where its file goes.
        schema: SQL that creates its tables and indexes.
    """

    def __init__(self, folder: Path, schema: str) -> None:
        self._file = folder / f"{uuid.uuid4().hex[:12]}.sqlite"
        self._connection = sqlite3.connect(self._file, isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        self._connection.executescript(f"BEGIN;{schema}")  # one transaction: nothing of it is kept

    def __del__(self) -> None:
        self._connection.close()

    def add(self, sql: str, *values: Any) -> bool:
        """Run a statement that changes rows, and return whether it changed any.

        Raises:
            OSError: the disk is full.
        """
        try:
            return self._connection.execute(sql, values).rowcount > 0
        except sqlite3.OperationalError as error:
            raise self._readable(error) from None

    def row(self, sql: str, *values: Any) -> Any:
        """Return the first row of a query, or None."""
        try:
            return self._connection.execute(sql, values).fetchone()
        except sqlite3.OperationalError as error:
            raise self._readable(error) from None

    def rows(self, sql: str, *values: Any) -> Iterator[Any]:
        """Yield the rows of a query."""
        try:
            yield from self._connection.execute(sql, values)
        except sqlite3.OperationalError as error:
            raise self._readable(error) from None

    def _readable(self, error: sqlite3.OperationalError) -> OSError:
        return OSError(f"{self._file}: {error}: free space there, or set TMPDIR to a folder with more")
