"""The texts that several models know, with their vectors: models are compared over these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.inputs.text_model import Embed, TextModel, embed_here

NARROWING = 0.1  # a model is named that lacks more than this fraction of the texts that the widest one knows


@dataclass(frozen=True)
class Selection:
    """The rows of an analysis whose text every model knows.

    Attributes:
        rows: their indices among the requested texts, ascending.
        vectors: vectors of these rows, by model.
        left_out: number of distinct texts that each model does not know.
    """

    rows: Int[np.ndarray, " row"]
    vectors: dict[str, Float[np.ndarray, "row dim"]]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Lexicon:
    """Vectors of texts by model, the same texts for all.

    Attributes:
        row_of: row of each text that all models know.
        vectors: vectors of these texts, by model.
        unknown: texts that a model does not know, by model.
    """

    row_of: dict[str, int]
    vectors: dict[str, Float[np.ndarray, "text dim"]]
    unknown: dict[str, frozenset[str]]

    @staticmethod
    def of(models: Mapping[str, TextModel], texts: Sequence[str], embed: Embed = embed_here) -> Lexicon:
        """Embed all texts that every model knows. A repeated text is embedded once.

        Args:
            embed: computes the vectors (`Cache.embed` keeps them on disk).

        Raises:
            ValueError: there is no model, no text, or no text that every model knows; or as
                `TextModel.embed`.
        """
        if not models:
            raise ValueError("expected at least one model, got none")
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            raise ValueError("expected at least one word, got none")
        known = {name: model.known(distinct) for name, model in models.items()}
        shared = np.flatnonzero(np.logical_and.reduce(list(known.values())))
        if not len(shared):
            counts = ", ".join(f"{name} knows {int(has.sum()):,}" for name, has in known.items())
            reasons = "".join(f"; {name}: {note}" for name, model in models.items() for note in model.notes)
            raise ValueError(
                f"expected words that every model knows, got none among {len(distinct):,}, as {distinct[0]!r}: {counts}"
                f"{reasons}"
            )
        texts = [distinct[row] for row in shared.tolist()]
        return Lexicon(
            {text: row for row, text in enumerate(texts)},
            {name: embed(model, texts) for name, model in models.items()},
            {name: frozenset(distinct[row] for row in np.flatnonzero(~has).tolist()) for name, has in known.items()},
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a line for each model that knows far fewer texts than another: it narrows the figures of all."""
        texts = self.row_of.keys() | set().union(*self.unknown.values())
        known = {name: len(texts) - len(unknown) for name, unknown in self.unknown.items()}
        return tuple(
            f"{name} knows {count:,} of {len(texts):,} words and phrases: the figures of all models are over the "
            f"{len(self.row_of):,} that all know. In a command without it the others keep theirs"
            for name, count in known.items()
            if count < (1 - NARROWING) * max(known.values())
        )

    def select(self, texts: Sequence[str]) -> Selection:
        """Select the rows of an analysis whose text every model knows. Texts may repeat, as in several categories.

        Raises:
            KeyError: a text is not one of the lexicon's.
        """
        missing = [text for text in texts if text not in self.row_of]
        for text in missing:
            if not any(text in unknown for unknown in self.unknown.values()):
                raise KeyError(f"expected texts that the lexicon was made of, got {text!r}")
        rows = np.array([row for row, text in enumerate(texts) if text in self.row_of], dtype=np.int64)
        lexicon_rows = np.array([self.row_of[text] for text in texts if text in self.row_of], dtype=np.int64)
        absent = set(missing)
        counts = {f"words out of vocabulary ({name})": len(absent & unknown) for name, unknown in self.unknown.items()}
        return Selection(
            rows,
            {name: vectors[_as_slice(lexicon_rows)] for name, vectors in self.vectors.items()},
            {what: count for what, count in counts.items() if count},
        )


def _as_slice(rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"] | slice:
    """Return rows that follow one another as a slice, which copies no vector: a vocabulary in the order of its file."""
    together = len(rows) > 0 and bool(np.all(np.diff(rows) == 1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
