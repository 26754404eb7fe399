"""Strata of word pairs: parts of a set that are measured by themselves, such as SimLex's verbs.

They come from columns that the file of pairs has beside words and score, and names in its first line:

- `POS`, `concQ` and `SimAssoc333` of SimLex-999: parts of speech, quartiles of concreteness, and the 333 pairs that are
  associated most, which are the hard ones;
- other columns of text with at most MOST values, of ROWS pairs each on average, and of the numbers 0 and 1 alone;
- or instead the columns that are chosen by name. Numbers of more than MOST values are divided into quartiles.

A set without `concQ` has quartiles of the mean concreteness of a pair's words, if ratings are given for at least RATED
of its pairs. A part of speech is never guessed from the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.inputs.delimited import NO_WORD, is_missing, number, spaced
from groundray.analysis.inputs.word_pairs import Pairs
from groundray.storage.delimited_text import plain

MOST, ROWS, RATED = 12, 10, 400
CONCRETENESS = "concreteness"  # chosen: quartiles by ratings
RATED_PAIRS = "mean concreteness of the two words"  # in place of a column
SPEECH = {
    tag: name
    for name, tags in {
        "adjectives": ("a", "j", "jj", "adj", "adjective"),
        "nouns": ("n", "nn", "noun"),
        "verbs": ("v", "vb", "verb"),
        "adverbs": ("r", "rb", "adv", "adverb"),
    }.items()
    for tag in tags
}
NO_STRATUM = ""
QUARTILES, HARD = "concq", "simassoc333"


@dataclass(frozen=True)
class Strata:
    """Strata of a set of pairs.

    Attributes:
        pairs: indices of the pairs of each stratum, by its name.
        columns: names of the columns that they are of.
        left_out: counts of pairs that are in no stratum of a column.
    """

    pairs: dict[str, Int[np.ndarray, " pair"]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)


def strata_of(pairs: Pairs, chosen: Sequence[str] = (), ratings: Mapping[str, float] | None = None) -> Strata:
    """Return the strata of a set; none if it has no column for them.

    Args:
        chosen: names of columns, and CONCRETENESS; empty for the columns that are described above.
        ratings: concreteness of words.

    Raises:
        ValueError: a chosen column has text with more than MOST values.
    """
    wanted = {plain(name) for name in chosen}
    titles = {plain(title): title for title in pairs.columns}
    found: dict[str, Int[np.ndarray, " pair"]] = {}
    used: list[str] = []
    left_out: dict[str, int] = {}
    for name, title in titles.items():
        texts = pairs.columns[title]
        if name in wanted if chosen else _is_for_strata(name, texts):
            labels = _labels(name, title, texts)
            found |= _by_label(labels)
            used.append(title)
            if missing := labels.count(None):
                left_out[f"pairs without {title}, for its strata"] = missing
    if ratings and CONCRETENESS not in titles and (CONCRETENESS in wanted if chosen else QUARTILES not in titles):
        means = np.array([_mean(ratings, pair) for pair in zip(pairs.first, pairs.second, strict=True)])
        rated = int(np.isfinite(means).sum())
        if rated >= (4 if chosen else RATED):
            found |= _by_label(_quartiles(means, CONCRETENESS))
            used.append(RATED_PAIRS)
            if rated < len(means):
                left_out["pairs with a word without a concreteness rating, for its strata"] = len(means) - rated
    return Strata(found, tuple(used), left_out)


def _is_for_strata(name: str, texts: Sequence[str]) -> bool:
    if name in ("pos", QUARTILES, HARD):
        return True
    numbers = _numbers(texts)
    if numbers is not None:
        return set(numbers[np.isfinite(numbers)].tolist()) == {0, 1}
    present = [text for text in texts if text.lower() not in NO_WORD]
    values = set(present)
    return 2 <= len(values) <= MOST and len(values) * ROWS <= len(present)


def _labels(name: str, title: str, texts: Sequence[str]) -> list[str | None]:
    """Return the stratum of each pair by a column; None if it has none."""
    numbers = _numbers(texts)
    if numbers is not None:
        if len(np.unique(numbers[np.isfinite(numbers)])) > MOST:
            return _quartiles(numbers, title)
        texts = [f"{value:g}" if np.isfinite(value) else "" for value in numbers]
    values = {text for text in texts if text.lower() not in NO_WORD}
    if len(values) > MOST:
        raise ValueError(
            f"expected a column of numbers or of at most {MOST} values for strata, got {len(values)} values in {title}"
        )
    return [_name(name, title, text) if text in values else None for text in texts]


def _name(name: str, title: str, value: str) -> str:
    """Return the name of a stratum; NO_STRATUM for the pairs that are not hard."""
    if name == HARD:
        return "hard" if value == "1" else NO_STRATUM
    if name == QUARTILES:
        return f"{CONCRETENESS} {value} of 4"
    if name == "pos":
        return SPEECH.get(value.lower(), f"{title} {value}")
    return f"{title} {spaced(value)}"


def _by_label(labels: Sequence[str | None]) -> dict[str, Int[np.ndarray, " pair"]]:
    of = np.array([label or NO_STRATUM for label in labels])
    names = sorted({label for label in labels if label})
    return {name: np.flatnonzero(of == name) for name in names}


def _quartiles(values: Float[np.ndarray, " pair"], title: str) -> list[str | None]:
    """Return the quartile of each number among all; a number on the border is in the lower one."""
    borders = np.nanquantile(values, (0.25, 0.5, 0.75))
    places = np.searchsorted(borders, values).tolist()
    return [
        f"{title} {place + 1} of 4" if np.isfinite(value) else None
        for place, value in zip(places, values.tolist(), strict=True)
    ]


def _mean(ratings: Mapping[str, float], pair: tuple[str, str]) -> float:
    first, second = (ratings.get(word, np.nan) for word in pair)
    return (first + second) / 2


def _numbers(texts: Sequence[str]) -> Float[np.ndarray, " pair"] | None:
    """Return the numbers of a column, NaN where one is missing; None if any is text, or all are missing."""
    try:
        numbers = [np.nan if is_missing(text) else number(text.replace(",", "."), "", "") for text in texts]
    except ValueError:
        return None
    return np.array(numbers) if not all(map(np.isnan, numbers)) else None
