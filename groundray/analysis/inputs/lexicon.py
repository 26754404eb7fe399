"""The texts that several models know, with their vectors: what every comparison of models is made over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.inputs.embedding import Embed, Embedder


@dataclass(frozen=True)
class Taken:
    """Rows of an analysis whose text every model knows.

    Attributes:
        rows: their places among the texts that were asked for, in order.
        vectors: by model, of these rows.
        left_out: how many different texts each model does not know.
    """

    rows: Int[np.ndarray, " row"]
    vectors: dict[str, Float[np.ndarray, "row dim"]]
    left_out: dict[str, int]


@dataclass(frozen=True)
class Lexicon:
    """Vectors of texts by model, the same texts for all.

    Attributes:
        place: of each text that all models know, its row.
        unknown: by model, the texts that it does not know.
    """

    place: dict[str, int]
    vectors: dict[str, Float[np.ndarray, "text dim"]]
    unknown: dict[str, frozenset[str]]

    @staticmethod
    def of(models: Mapping[str, Embedder], texts: Sequence[str], embed: Embed = Embedder.embed) -> Lexicon:
        """The vectors of all of the texts that every model knows; a text that is there twice is embedded once.

        Args:
            embed: makes the vectors (`Cache.embed` keeps them, `runtime.embedding.embed` spreads the work).

        Raises:
            ValueError: there is no model, no text, or none that every model knows; or as `Embedder.embed`.
        """
        if not models:
            raise ValueError("expected at least one model, got none")
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            raise ValueError("expected at least one word, got none")
        known = {name: model.known(distinct) for name, model in models.items()}
        shared = np.flatnonzero(np.logical_and.reduce(list(known.values())))
        if not len(shared):
            raise ValueError(
                f"expected words that {' and '.join(models)} know, got none among {len(distinct)}, as {distinct[0]!r}"
            )
        kept = [distinct[row] for row in shared.tolist()]
        return Lexicon(
            {text: row for row, text in enumerate(kept)},
            {name: embed(model, kept) for name, model in models.items()},
            {name: frozenset(distinct[row] for row in np.flatnonzero(~has).tolist()) for name, has in known.items()},
        )

    def take(self, texts: Sequence[str]) -> Taken:
        """The rows of an analysis that can be used; texts may repeat, as a word does in several categories.

        Raises:
            KeyError: a text was not among those that the lexicon was made of.
        """
        missing = [text for text in texts if text not in self.place]
        for text in missing:
            if not any(text in unknown for unknown in self.unknown.values()):
                raise KeyError(f"expected texts that the lexicon was made of, got {text!r}")
        rows = np.array([row for row, text in enumerate(texts) if text in self.place], dtype=np.int64)
        places = np.array([self.place[text] for text in texts if text in self.place], dtype=np.int64)
        asked = set(missing)
        counts = {f"words out of vocabulary ({name})": len(asked & unknown) for name, unknown in self.unknown.items()}
        return Taken(
            rows,
            {name: vectors[places] for name, vectors in self.vectors.items()},
            {what: count for what, count in counts.items() if count},
        )
