"""Word vectors as a model: GloVe, word2vec, fastText, or any file of words and vectors (`vector_files.py`).

A text's vector is that of the whole text, where the file has it, or else the mean of its words' vectors. Each is looked
up as it is written, then in lower case; a whole text also with underscores for spaces (`ice_cream`), a word of a phrase
also without the punctuation around it. Punctuation by itself is no word. A phrase is known where all of its words are,
as a text is for a language model where all of its word pieces are.

The file is read when texts are looked up, and only vectors of the words in them are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Bool

from groundray.analysis.inputs import found_vectors, vector_files, vector_text
from groundray.analysis.inputs.found_vectors import FoundVectors
from groundray.analysis.inputs.text_model import Encode, Progress, Vectors, encode_here, no_progress, refuse
from groundray.storage.folder import Folder

# around words; # and + belong to them
PUNCTUATION = ".,;:!?()[]{}\"'-\u00ab\u00bb\u2013\u2014\u2018\u2019\u201c\u201d\u2026"


class WordVectors:
    """A file of words and vectors.

    Attributes:
        name: path or URL of the file.
        about: what its vectors are, for display.
        notes: a line for each reason to leave words out of those that were looked up, with their number and the
            first's place; and one for options that are not used.
    """

    about: str = "vector of the text, or mean of its words' vectors"
    code: tuple[ModuleType, ...] = (sys.modules[__name__], found_vectors, vector_files, vector_text)

    def __init__(self, url: str | Path, unused: Sequence[str] = ()):
        """
        Args:
            unused: options of the command that do not apply to word vectors.
        """
        self.name = str(url)
        self._unused = tuple(unused)
        self._asked: frozenset[str] = frozenset()
        self._found: FoundVectors | None = None
        self._row: dict[str, int] = {}
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Checksum of the file."""
        if self._digest is None:
            file = Folder.at(self.name)
            self._digest = file.parent.seal(file.name).sha256
        return self._digest

    @property
    def notes(self) -> tuple[str, ...]:
        found = self._found.left_out if self._found else {}
        left_out = (f"{number:,} {what} left out, the first in {first}" for what, (number, first) in found.items())
        unused = f"{', '.join(self._unused)}: not used, a word has one vector" if self._unused else ""
        return (*left_out, *([unused] if unused else []))

    def known(self, texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Return which texts have a vector."""
        self._look_up(texts)
        return np.array([bool(self._rows(text)) for text in texts], dtype=np.bool_)

    def embed(self, texts: Sequence[str], progress: Progress = no_progress, encode: Encode = encode_here) -> Vectors:
        """Return the vector of each text. Nothing is computed that could be distributed: `encode` is not called.

        Raises:
            ValueError: there is no text, or the file has not all words of each.
        """
        if not texts:
            raise ValueError("expected at least one text to embed, got none")
        refuse(self.name, texts, self.known(texts).tolist(), "texts of words that the file has")
        found = self._look_up(texts).vectors
        vectors = np.empty((len(texts), found.shape[1]), dtype=np.float32)
        for number, text in enumerate(texts):
            vectors[number] = found[self._rows(text)].mean(axis=0)
        progress(len(texts), len(texts))
        return vectors

    def _look_up(self, texts: Sequence[str]) -> FoundVectors:
        """Return the vectors of all words of the texts and of those before; read the file if it was not for these."""
        asked = self._asked.union(form for text in texts for forms in (_whole(text), *_words(text)) for form in forms)
        if self._found is None or asked != self._asked:
            self._found, self._asked = vector_files.read_vectors(self.name, asked), asked
            self._row = {word: row for row, word in enumerate(self._found.words)}
        return self._found

    def _rows(self, text: str) -> list[int]:
        """Return the rows of the vectors whose mean is the text's; none if the file lacks one."""
        whole = self._first(_whole(text))
        if whole is not None:
            return [whole]
        rows = [self._first(forms) for forms in _words(text)]
        return [] if None in rows else [row for row in rows if row is not None]

    def _first(self, forms: Sequence[str]) -> int | None:
        return next((self._row[form] for form in forms if form in self._row), None)


def _whole(text: str) -> tuple[str, ...]:
    """Return the forms in which a file may have a whole text, in the order in which they are looked up."""
    text = " ".join(text.split())
    return (text, text.lower(), text.replace(" ", "_"), text.lower().replace(" ", "_"))


def _words(text: str) -> Iterator[tuple[str, ...]]:
    """Yield the forms of each word of a text, in the order in which they are looked up."""
    for word in text.split():
        if plain := word.strip(PUNCTUATION):
            yield (word, word.lower(), plain, plain.lower())
