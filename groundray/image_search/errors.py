"""Errors in a request to search. Their messages are shown to the client."""

from __future__ import annotations


class BadQuery(ValueError):
    """A query that asks for nothing, or has a value out of range."""


class UnknownImage(LookupError):
    """An id that no image of the pool has."""
