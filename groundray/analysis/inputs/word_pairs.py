"""Pairs of words with their human similarity, in the layouts in which such sets are published.

Columns are found by their names, or without names by what they hold: two columns of words and one of scores. The rest
is recognised and ignored: row numbers, parts of speech, kinds of relation, contexts, single ratings beside their mean.
A file that can be read in two ways is refused.

set                     layout
SimLex-999              tabs, named: word1 word2 POS SimLex999 conc(w1) ...
SimVerb-3500            tabs: word word V score relation
WordSim-353             commas or tabs, named: Word 1, Word 2, Human (mean); "agreed": relation, word, word, score
MEN                     spaces: word word score; or its lemma form, `sun-n sunlight-n 50`
SCWS                    tabs: number, word, tag, word, tag, context, context, mean, ten ratings
RareWords               tabs: word word mean, ten ratings
RG-65, MC-30            tabs, semicolons or spaces: word word score
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from groundray.analysis.inputs.delimited import (
    Content,
    Row,
    Source,
    has_decimal_commas,
    is_missing,
    number,
    read_content,
    split_rows,
)
from groundray.storage.delimited_text import SEPARATORS, plain

WORDS = (
    ("word1", "word_1", "w1", "verb1", "first", "first_word", "term1", "term_1"),
    ("word2", "word_2", "w2", "verb2", "second", "second_word", "term2", "term_2"),
)
# in order of preference
SCORES = (
    "simlex999", "simverb3500", "human_mean", "avg_score", "score", "similarity", "relatedness", "human", "mean",
    "average", "rating",
)  # fmt: skip
RELATIONS = frozenset(
    (
        "synonyms",
        "antonyms",
        "hyper/hyponyms",
        "cohyponyms",
        "none",
        "noun",
        "verb",
        "adj",
        "adv",
        "nn",
        "vb",
        "jj",
        "rb",
    )
)
CONTEXT_WORDS = 2.5  # a column with more words a field holds contexts
LABEL_ROWS = 10  # a column of labels repeats each this many times, on average
LEMMA = re.compile(r"(?P<word>.+)[-_/.](n|v|j|a|r|nn|vb|jj|rb|noun|verb|adj|adv)", re.IGNORECASE)


@dataclass(frozen=True)
class Pairs:
    """Pairs of words with their human similarity.

    Attributes:
        repeated: number of pairs that occur more than once, in either order. They are kept: published sets contain
            some, and are scored with them.
        columns: text of each pair in the other columns, by their names; empty if the file names no columns.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    score: Float[np.ndarray, " pair"]
    repeated: int
    left_out: dict[str, int] = field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class _Columns:
    """Places of the three columns, and whether the first row names them."""

    words: tuple[int, int]
    score: int
    named: bool


def read_pairs(url: str | Path) -> Pairs:
    """Read pairs of words with their similarity. Pairs without a word or a score are left out and counted.

    Raises:
        ValueError: a line has another number of fields than the first, no number as its score, or the columns cannot be
            told apart; the message names the line and the columns.
    """
    content = read_content(url)
    separator, rows = _split(content)
    columns = _find_columns(content, rows)
    taken = (*columns.words, columns.score)
    titles = rows[0][1] if columns.named else [str(column + 1) for column in range(len(rows[0][1]))]
    rows = rows[1:] if columns.named else rows
    fields = [(content.where(line), parts[columns.score]) for line, parts in rows]
    commas = has_decimal_commas(fields, "score", separator)
    others = {
        at: title
        for at, title in enumerate(titles if columns.named else [])
        if title and at not in taken and titles.count(title) == 1
    }
    kept: list[tuple[str, str, float]] = []
    beside: list[list[str]] = []
    wordless = unscored = 0
    for line, parts in rows:
        row = Row(
            content.where(line), dict(zip(("first", "second", "score"), (parts[at] for at in taken), strict=True))
        )
        first, second = row.text("first"), row.text("second")
        text = row.fields["score"].replace(",", ".") if commas else row.fields["score"]
        score = None if is_missing(text) else number(text, "score", row.where)
        if not first or not second:
            wordless += 1
        elif score is None:
            unscored += 1
        else:
            kept.append((first, second, score))
            beside.append([parts[at] for at in others])
    if not kept:
        raise ValueError(f"{url}: expected pairs of words with a score, got none among {len(rows)}")
    lemmas = all(LEMMA.fullmatch(word) for pair in kept for word in pair[:2])
    firsts, seconds, scores = zip(*kept, strict=True)
    if lemmas:
        firsts, seconds = (tuple(LEMMA.sub(r"\g<word>", word) for word in words) for words in (firsts, seconds))
    distinct = {frozenset(pair) for pair in zip(firsts, seconds, strict=True)}
    counts = {"pairs without two words": wordless, "pairs without a score": unscored}
    left_out = {what: count for what, count in counts.items() if count}
    remarks = [*(["decimal commas"] if commas else []), *(["tags of lemmas removed"] if lemmas else [])]
    return Pairs(
        firsts,
        seconds,
        np.array(scores),
        len(kept) - len(distinct),
        left_out,
        dict(zip(others.values(), zip(*beside, strict=True), strict=True)) if others else {},
        Source(
            str(url),
            f"columns {', '.join(titles[at] for at in taken)}; {content.layout(separator, *remarks)}",
            len(rows),
            len(kept),
            left_out,
        ),
    )


def _split(content: Content) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the separator under which every row has as many fields as the first, at least three; and the rows."""
    line, first = next(((line, text) for line, text in content.lines if not text.startswith("#")), content.lines[0])
    attempts = (
        [content.separator] if content.separator else [separator for separator in SEPARATORS if separator in first]
    )
    attempts = [separator for separator in attempts if separator != " " or "\t" not in first] or ["\t"]
    problem: ValueError | None = None
    for separator in attempts:
        try:
            rows = split_rows(content, separator)
        except ValueError as error:
            problem = problem or error
            continue
        if len(rows[0][1]) >= 3:
            return separator, rows
    raise problem or ValueError(f"{content.where(line)}: expected two words and a score, got {first!r}")


def _find_columns(content: Content, rows: Sequence[tuple[int, list[str]]]) -> _Columns:
    """Find the columns of words and of scores, by name or else by what they hold."""
    line, first = rows[0]
    names = [plain(title) for title in first]
    words = [next((names.index(name) for name in known if name in names), None) for known in WORDS]
    if names.count("word") == 2:
        words = [at for at, name in enumerate(names) if name == "word"]
    score = next((names.index(name) for name in SCORES if name in names), None)
    table = [fields for _, fields in rows]
    numeric = [at for at in range(len(first)) if _is_numeric([fields[at] for fields in table])]
    named = not any(_is_number(first[at]) or is_missing(first[at]) for at in numeric if first[at]) and (
        None not in words or score is not None
    )
    body = table[1:] if named else table
    here = f"{content.where(line)}: "
    if not body:
        raise ValueError(f"{here}expected pairs below the names of columns, got none")
    titles = first if named else [f"column {at + 1} ({first[at]})" for at in range(len(first))]
    if not named:
        words, score = [None, None], None
    if not named and numeric and not any(_is_number(first[at]) or is_missing(first[at]) for at in numeric):
        raise ValueError(
            f"{here}expected two words and a number, or names: {WORDS[0][0]}, {WORDS[1][0]} and one of "
            f"{', '.join(SCORES)}, with pairs below them; got {', '.join(first)}"
        )
    if None in words:
        words = _word_columns([at for at in range(len(first)) if at not in numeric and at != score], body, titles, here)
    pair = (int(words[0] or 0), int(words[1] or 0))
    if score is None:
        score = _score_column([at for at in numeric if at not in pair], pair, body, titles, here)
    return _Columns(pair, score, named)


def _word_columns(
    columns: Sequence[int], body: Sequence[list[str]], titles: Sequence[str], here: str
) -> list[int | None]:
    """Return the two columns of words among columns of text."""
    values = {at: [fields[at] for fields in body if fields[at]] for at in columns}
    tags = {at for at, texts in values.items() if _are_tags(texts)}
    candidates = [at for at in columns if at not in tags and _words_a_field(values[at]) <= CONTEXT_WORDS]
    if not candidates and len(columns) == 2:
        candidates = list(columns)  # both are single letters
    if len(candidates) > 2:
        labels = [at for at in candidates if len(set(values[at])) * LABEL_ROWS <= len(values[at])]
        candidates = [at for at in candidates if at not in labels]
    if len(candidates) != 2:
        listed = ", ".join(titles[at] for at in candidates) or "none"
        raise ValueError(
            f"{here}expected two columns of words, got {listed}: name the columns {WORDS[0][0]}, {WORDS[1][0]} and "
            f"{SCORES[4]} in a first line"
        )
    return [*candidates]


def _are_tags(texts: Sequence[str]) -> bool:
    """Return whether texts are parts of speech or kinds of relation: single letters, or known names of them."""
    return all(len(text) == 1 for text in texts) or all(text.lower() in RELATIONS for text in texts)


def _words_a_field(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / max(1, len(texts))


def _score_column(
    columns: Sequence[int], words: tuple[int, int], body: Sequence[list[str]], titles: Sequence[str], here: str
) -> int:
    """Return the column of scores among columns of numbers, without row numbers, and the mean of single ratings."""
    numbers = {at: [_value(fields[at]) for fields in body] for at in columns}
    leading = [at for at in columns if at < min(words)]
    numbering = {at for at in leading if _counts_up(numbers[at])}
    if any(at > min(words) for at in columns):  # numbers of a part of a set
        numbering |= {at for at in leading if _are_ids(numbers[at])}
    candidates = [at for at in columns if at not in numbering]
    if len(candidates) > 2 and _lies_within(numbers[candidates[0]], [numbers[at] for at in candidates[1:]]):
        return candidates[0]
    if len(candidates) != 1:
        listed = ", ".join(titles[at] for at in candidates) or f"none among {', '.join(titles)}"
        raise ValueError(
            f"{here}expected two words and a number, one column of scores; got {listed}: name the columns "
            f"{WORDS[0][0]}, {WORDS[1][0]} and one of {', '.join(SCORES)} in a first line"
        )
    return candidates[0]


def _counts_up(values: Sequence[float | None]) -> bool:
    """Return whether numbers are 0, 1, 2 ... or 1, 2, 3 ..., as those of rows."""
    return values[0] in (0, 1) and all(value == values[0] + at for at, value in enumerate(values))


def _are_ids(values: Sequence[float | None]) -> bool:
    return len(set(values)) == len(values) and all(value is not None and value == int(value) for value in values)


def _lies_within(values: Sequence[float | None], others: Sequence[Sequence[float | None]]) -> bool:
    """Return whether each number lies between the least and the largest of the others in its row, as a mean does."""
    for value, *rest in zip(values, *others, strict=True):
        known = [score for score in rest if score is not None]
        if value is not None and known and not min(known) <= value <= max(known):
            return False
    return True


def _is_numeric(texts: Sequence[str]) -> bool:
    """Return whether at least half of the fields of a column that are not missing are numbers."""
    present = [text for text in texts if not is_missing(text)]
    return bool(present) and 2 * sum(map(_is_number, present)) >= len(present)


def _is_number(text: str) -> bool:
    return _value(text) is not None


def _value(text: str) -> float | None:
    """Return a number, with a decimal comma or point; None if it is none."""
    try:
        return number(text.replace(",", "."), "", "")
    except ValueError:
        return None
