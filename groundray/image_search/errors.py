"""Why a question is not answered, where it is the question's fault; each message is for whoever asked."""

from __future__ import annotations


class BadQuery(ValueError):
    """There is nothing to look for, or something is out of its range."""


class UnknownImage(LookupError):
    """The pool has no image of that id."""
