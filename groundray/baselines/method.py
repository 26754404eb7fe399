"""What a method is, for the card of its vectors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A method that makes word vectors.

    Attributes:
        name: of the command, such as `glove`.
        about: one line for readers.
        source: publications, as Markdown.
        details: what is done, and how it differs from the publication.
    """

    name: str
    about: str
    source: str
    details: str
