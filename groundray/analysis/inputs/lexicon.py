"""The texts that several models know, with their vectors: models are compared over these.

Each model embeds all texts that it knows, once. An analysis then compares its models over the texts that all of them
know. A model that knows too few of an analysis' texts is left out of it: it would narrow the figures of all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from groundray.analysis.inputs.text_model import Embed, TextModel, embed_here

MIN_COVERAGE = 0.5  # of the texts that the model with the widest vocabulary knows
NARROWING = 0.1  # a model is named that lacks more than this fraction of them


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

    @property
    def narrowing(self) -> dict[str, str]:
        """How many texts each model knows that knows far fewer than another: it narrows the figures of all."""
        texts = self.row_of.keys() | set().union(*self.unknown.values())
        known = {name: len(texts) - len(unknown) for name, unknown in self.unknown.items()}
        return {
            name: f"{count:,} of {len(texts):,}"
            for name, count in known.items()
            if count < (1 - NARROWING) * max(known.values())
        }

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


@dataclass(frozen=True)
class KnownTexts:
    """The texts that each of several models knows, with their vectors.

    Attributes:
        texts: all texts, each once.
        known: which of them a model knows, by model.
        vectors: vectors of those, by model.
        reasons: why a model does not know some, a line each with the model's name.
    """

    texts: tuple[str, ...]
    known: dict[str, Bool[np.ndarray, " text"]]
    vectors: dict[str, Float[np.ndarray, "known dim"]]
    reasons: tuple[str, ...] = ()

    @staticmethod
    def of(models: Mapping[str, TextModel], texts: Sequence[str], embed: Embed = embed_here) -> KnownTexts:
        """Embed the texts that each model knows. A repeated text is embedded once.

        Args:
            embed: computes the vectors (`Cache.embed` keeps them on disk).

        Raises:
            ValueError: there is no model, or no text; or as `TextModel.embed`.
        """
        if not models:
            raise ValueError("expected at least one model, got none")
        distinct = tuple(dict.fromkeys(texts))
        if not distinct:
            raise ValueError("expected at least one word, got none")
        known = {name: model.known(distinct) for name, model in models.items()}
        vectors = {
            name: embed(model, [distinct[row] for row in np.flatnonzero(known[name]).tolist()])
            for name, model in models.items()
            if known[name].any()
        }
        return KnownTexts(
            distinct,
            known,
            vectors,
            tuple(f"{name}: {note}" for name, model in models.items() for note in model.notes),
        )

    def among(self, texts: Sequence[str], min_coverage: float = MIN_COVERAGE) -> tuple[Lexicon, dict[str, str]]:
        """Return the lexicon of some of the texts, and how many of them each model knows that is not in it, in words.

        Args:
            min_coverage: fraction of the texts that the model with the widest vocabulary knows, from 0 to 1. A model
                that knows fewer is not in the lexicon. With 0 all are.

        Raises:
            ValueError: there is no text that every model of the lexicon knows.
        """
        wanted = set(texts)
        chosen = np.array([text in wanted for text in self.texts])
        counts = {name: int((chosen & has).sum()) for name, has in self.known.items()}
        least = min_coverage * max(counts.values())
        covering = [name for name, count in counts.items() if count >= least]
        shared = chosen & np.logical_and.reduce([self.known[name] for name in covering])
        if not shared.any():
            missing = [text for text in texts if text in wanted][:1]
            told = ", ".join(f"{name} knows {counts[name]:,}" for name in covering)
            reasons = "".join(f"; {reason}" for reason in self.reasons)
            raise ValueError(
                f"expected words that every model knows, got none among {len(wanted):,}, as {missing[0]!r}: {told}"
                f"{reasons}"
            )
        rows = np.flatnonzero(shared)
        lexicon = Lexicon(
            {self.texts[row]: place for place, row in enumerate(rows.tolist())},
            {name: self._rows_of(name, rows) for name in covering},
            {
                name: frozenset(self.texts[row] for row in np.flatnonzero(chosen & ~self.known[name]).tolist())
                for name in covering
            },
        )
        return lexicon, {
            name: f"{count:,} of {len(wanted):,}" for name, count in counts.items() if name not in covering
        }

    def _rows_of(self, name: str, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "row dim"]:
        """Return a model's vectors of some texts, all of which it knows."""
        places = np.cumsum(self.known[name])[rows] - 1
        return self.vectors[name][_as_slice(places)]


class Coverage:
    """Chooses the models of each analysis by how many of its texts they know, and tells which were left out.

    Attributes:
        minimum: as `min_coverage` of `KnownTexts.among`.
    """

    def __init__(self, minimum: float = MIN_COVERAGE):
        self.minimum = minimum
        self._absent: dict[str, list[str]] = {}
        self._narrowing: dict[str, list[str]] = {}

    def lexicon(self, analysis: str, known: KnownTexts, texts: Sequence[str]) -> Lexicon:
        """Return the lexicon of an analysis; an empty one for an analysis without texts.

        Raises:
            ValueError: as `KnownTexts.among`.
        """
        if not texts:
            return Lexicon({}, {}, {})
        lexicon, absent = known.among(texts, self.minimum)
        for models, counts in ((self._absent, absent), (self._narrowing, lexicon.narrowing)):
            for model, count in counts.items():
                models.setdefault(model, []).append(f"{analysis} ({count})")
        return lexicon

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each model that was left out of analyses, and for each that narrows the figures of others."""
        return (
            *(
                f"{model} knows fewer than {self.minimum:.0%} of the words and phrases that another model knows of "
                f"{', '.join(places)}: it is not compared there (--min-coverage 0 keeps it, and narrows the others to "
                "its words)"
                for model, places in self._absent.items()
            ),
            *(
                f"{model} narrows the figures of all models to the words that it knows, of {', '.join(places)}: in a "
                "command without it the others keep theirs"
                for model, places in self._narrowing.items()
            ),
        )


def _as_slice(rows: Int[np.ndarray, " row"]) -> Int[np.ndarray, " row"] | slice:
    """Return rows that follow one another as a slice, which copies no vector: a vocabulary in the order of its file."""
    together = len(rows) > 0 and bool(np.all(np.diff(rows) == 1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
