"""Human norms and word sets, read from files on a local path or a URL.

Words, phrases and concepts are taken as written, except that underscores are spaces (`ice_cream`). Rows that cannot be
used are counted in `left_out`; contradictions and rows that cannot be read are errors that name the line. Pairs of
words are read by `word_pairs`.

data                    columns, and published files that have them
ratings                 word, concreteness: Brysbaert et al. 2014, as `Word`, `Conc.M`
categories              category or scene, word or sentence or text[, concreteness]
                        or a folder of files such as `animal-268.txt`, one word per line: SemCat
features                concept, feature, production_frequency[, type]
                        McRae et al. 2005 (CONCS_FEATS_concstats): Concept, Feature, Prod_Freq, BR_Label
                        CSLB (Devereux et al. 2014): concept, feature, feature type, pf
                        Buchanan et al. 2019: cue, translated, frequency_translated; or feature, frequency_feature
phrases                 phrase, target
words                   one word per line, or a table with a column `word`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from groundray.analysis.inputs.delimited import (
    Row,
    Source,
    Table,
    is_missing,
    read_lines,
    read_table,
    spaced,
    without_sense,
)
from groundray.storage.delimited_text import SEPARATORS
from groundray.storage.folder import Folder

RATING = ("concreteness", "conc_m")
# the paper's names for the feature types of McRae's and CSLB's norms
TYPES = {
    "visual perceptual": "visual",
    "visual-colour": "visual",
    "visual-form and surface": "visual",
    "visual-motion": "visual",
    "sound": "other perceptual",
    "smell": "other perceptual",
    "tactile": "other perceptual",
    "taste": "other perceptual",
    "function": "functional",
}
UNTYPED = ""
TEXT_FILE = re.compile(r"(?P<category>.+?)(-(?P<count>\d+))?\.txt")


class Kinds(NamedTuple):
    """What the rows of categories are: words by category, sentences by scene."""

    category: str
    text: str

    @property
    def plural(self) -> Kinds:
        """Return the plurals, such as categories and words."""
        return Kinds(*("categories" if kind == "category" else f"{kind}s" for kind in self))


WORDS_BY_CATEGORY = Kinds("category", "word")


@dataclass(frozen=True)
class Ratings:
    """Concreteness of each word, on the raters' scale."""

    of: dict[str, float]
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Categories:
    """Words by category: a row for each line of the file, so that a word has one for each of its categories.

    A word that stands twice in its category has two rows there, as in SemCat's published rows.

    Attributes:
        concreteness: rating of each row's word; NaN if it has none.
        kinds: what they are, as the file names its columns.
    """

    category: tuple[str, ...]
    word: tuple[str, ...]
    concreteness: Float[np.ndarray, " row"]
    kinds: Kinds = WORDS_BY_CATEGORY
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)

    def rated_by(self, ratings: Ratings) -> Categories:
        """Replace the ratings of all rows by these."""
        return replace(self, concreteness=np.array([ratings.of.get(word, np.nan) for word in self.word]))

    def rated(self) -> Categories:
        """Return the rows that have a rating, and count the others.

        Raises:
            ValueError: no row has one.
        """
        has = np.isfinite(self.concreteness)
        if not has.any():
            raise ValueError(f"expected words with a concreteness rating, got none among {len(self.word)}")
        kept = np.flatnonzero(has).tolist()
        return Categories(
            tuple(self.category[row] for row in kept),
            tuple(self.word[row] for row in kept),
            self.concreteness[has],
            self.kinds,
            _nonzero(self.left_out | {"rows without a concreteness rating": len(has) - len(kept)}),
        )


@dataclass(frozen=True)
class Features:
    """A table of concepts and their features.

    Attributes:
        concepts: distinct words or phrases.
        has: sparse matrix with a row for each concept and a column for each feature, 1 where the concept has it.
        types: type of each feature; UNTYPED if the file has none.
    """

    concepts: tuple[str, ...]
    features: tuple[str, ...]
    has: csr_array
    types: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Phrases:
    """Phrases, each with the word that it describes. A phrase may have several."""

    phrase: tuple[str, ...]
    target: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Words:
    """Distinct words or phrases."""

    words: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


def read_ratings(url: str | Path) -> Ratings:
    """Read the concreteness of words.

    Raises:
        ValueError: the table cannot be read, a word has two ratings, or no word has a rating.
    """
    table = read_table(url, {"word": ("word",), "concreteness": RATING}, numbers=("concreteness",))
    kept, left_out = _once(table, ("word",), "concreteness")
    of = {row.text("word"): rating for row, rating in kept if rating is not None}
    if not of:
        raise ValueError(f"{url}: expected words with a rating, got none among {len(kept)}")
    left_out = _nonzero({**left_out, "words without a concreteness rating": len(kept) - len(of)})
    return Ratings(of, left_out, _source(table, len(of), left_out))


def read_categories(url: str | Path) -> Categories:
    """Read words by category, from a table or from a folder of text files.

    Raises:
        ValueError: the table cannot be read, a word has two ratings in a category, or no text file of the folder can be
            read.
    """
    folder = Folder.at(url)
    if folder.exists() and not folder.filesystem.get_file_info(folder.path).is_file:
        return _categories_of(folder)
    columns = {"category": ("category", "scene"), "word": ("word", "sentence", "text"), "concreteness": RATING}
    table = read_table(url, columns, optional=("concreteness",), numbers=("concreteness",))
    kept, left_out = _agreeing(table, ("category", "word"), "concreteness")
    return Categories(
        tuple(row.fields["category"] for row, _ in kept),
        tuple(row.text("word") for row, _ in kept),
        np.array([np.nan if rating is None else rating for _, rating in kept]),
        Kinds(table.names["category"], table.names["word"]),
        left_out,
        _source(table, len(kept), left_out),
    )


def _categories_of(folder: Folder) -> Categories:
    """Read SemCat as published: one file per category, one word per line. A file that cannot be read is left out."""
    entries: list[tuple[str, str]] = []
    problems: list[str] = []
    other = 0
    for name in folder.names():
        named = None if name.startswith(".") else TEXT_FILE.fullmatch(name)
        if not named:
            other += 1
            continue
        try:
            words = _category(f"{folder}/{name}", named["count"])
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        entries += [(named["category"], word) for word in words]
    if not entries:
        raise ValueError(
            problems[0]
            if problems
            else f"expected a text file a category in {folder}, such as animal-268.txt, found none"
        )
    categories, words = zip(*entries, strict=True)
    left_out = _nonzero(
        {
            "categories whose file cannot be read": len(problems),
            "files that are not .txt": other,
        }
    )
    notes = tuple(f"category not read: {problem}" for problem in problems)
    source = Source(str(folder), "a file per category", len(words), len(words), left_out, notes)
    return Categories(categories, words, np.full(len(words), np.nan), left_out=left_out, source=source)


def _category(file: str, count: str | None) -> list[str]:
    """Return the words of a category's file, of which there are as many as its name says."""
    words = [spaced(line) for _, line in read_lines(file)]
    if count and len(words) != int(count):
        raise ValueError(
            f"{file}: expected {count} words, as the name says, got {len(words)}: "
            "fetch the file again, or name it after what it holds"
        )
    return words


def read_features(url: str | Path, min_people: float = 1) -> Features:
    """Read which concepts have which features.

    A concept's sense in brackets, as in `bat_(animal)`, is removed. Concepts that become the same word are omitted,
    since they share a vector but not their features. Feature types get the paper's names. If rows give a feature
    several types, the most frequent one counts; of equally frequent ones, the first.

    Args:
        min_people: number of people who must have named a feature of a concept.

    Raises:
        ValueError: the table cannot be read, or no feature is named that often.
    """
    columns = {
        "concept": ("concept", "cue"),
        "feature": ("translated", "feature"),
        "frequency": (
            "production_frequency",
            "prod_freq",
            "pf",
            "frequency_translated",
            "frequency_feature",
            "frequency",
        ),
        "type": ("type", "br_label", "feature_type"),
    }
    named: dict[tuple[str, str], None] = {}
    types: dict[str, Counter[str]] = {}
    concepts: dict[str, None] = {}
    rare = repeated = wordless = uncounted = 0
    table = read_table(url, columns, optional=("type",), numbers=("frequency",))
    for row in table.rows:
        concept, feature = row.text("concept"), row.text("feature")
        people = row.number_if_any("frequency")
        if not concept or not feature:
            wordless += 1
            continue
        concepts[concept] = None
        if people is None:
            uncounted += 1
            continue
        if people < min_people:
            rare += 1
            continue
        repeated += (concept, feature) in named
        named[concept, feature] = None
        types.setdefault(feature, Counter())[_type(row.fields.get("type", UNTYPED))] += 1
    if not named:
        raise ValueError(
            f"{url}: expected a feature named at least {min_people:g} times, got none: lower the threshold"
        )
    senses = Counter(map(without_sense, concepts))
    rows = {concept: row for row, concept in enumerate(name for name in concepts if senses[without_sense(name)] == 1)}
    columns_of = {feature: column for column, feature in enumerate(types)}
    places = [(rows[concept], columns_of[feature]) for concept, feature in named if concept in rows]
    index = np.array(places, dtype=np.int64).reshape(-1, 2).T
    has = csr_array((np.ones(len(places)), (index[0], index[1])), shape=(len(rows), len(types)))
    commonest = [counts.most_common(1)[0] for counts in types.values()]
    left_out = _nonzero(
        {
            "rows without a concept or feature": wordless,
            "features of concepts without a number of people": uncounted,
            f"features of concepts that fewer than {min_people:g} people named": rare,
            "features that a concept has twice": repeated,
            "concepts that are the same word as another": len(concepts) - len(rows),
            "types that are not the commonest of their feature": sum(
                counts.total() - most for counts, (_, most) in zip(types.values(), commonest, strict=True)
            ),
        }
    )
    return Features(
        tuple(map(without_sense, rows)),
        tuple(types),
        has,
        tuple(kind for kind, _ in commonest),
        left_out,
        _source(table, has.nnz, left_out),
    )


def _type(text: str) -> str:
    kind = UNTYPED if is_missing(text) else spaced(text).lower()
    return TYPES.get(kind, kind)


def read_phrases(url: str | Path) -> Phrases:
    """Read phrases with their targets.

    Raises:
        ValueError: the table cannot be read.
    """
    table = read_table(url, {"phrase": ("phrase",), "target": ("target",)})
    rows = [(row.text("phrase"), row.text("target")) for row in table.rows]
    whole = [row for row in rows if all(row)]
    if not whole:
        raise ValueError(f"{url}: expected phrases with a target, got none among {len(rows)}")
    phrases, targets = zip(*dict.fromkeys(whole), strict=True)
    left_out = _nonzero(
        {
            "rows without a phrase or target": len(rows) - len(whole),
            "phrases that stand twice": len(whole) - len(phrases),
        }
    )
    return Phrases(phrases, targets, left_out, _source(table, len(phrases), left_out))


def read_words(url: str | Path) -> Words:
    """Read words, one per line, or from the column `word` of a table (any file with tabs, commas or semicolons).

    Raises:
        ValueError: there is no word, or the table lacks that column.
    """
    lines = list(read_lines(url))
    if any(separator in lines[0][1] for separator in SEPARATORS if separator != " "):
        table = read_table(url, {"word": ("word",)})
        found, layout = [row.text("word") for row in table.rows], table.layout
    else:
        found, layout = [spaced(line) for _, line in lines], "a word per line"
    words = tuple(dict.fromkeys(word for word in found if word))
    if not words:
        raise ValueError(f"{url}: expected words, got none among {len(found)} rows")
    wordless = sum(not word for word in found)
    left_out = _nonzero({"rows without a word": wordless, "words that stand twice": len(found) - wordless - len(words)})
    return Words(words, left_out, Source(str(url), layout, len(found), len(words), left_out))


def _once(table: Table, key: Sequence[str], column: str) -> tuple[list[tuple[Row, float | None]], dict[str, int]]:
    """Return the first row of each key with its number, and the counts of rows that repeat one or lack one.

    Raises:
        ValueError: as `_agreeing`.
    """
    rows, left_out = _agreeing(table, key, column)
    kept: dict[tuple[str, ...], tuple[Row, float | None]] = {}
    for row, value in rows:
        kept.setdefault(tuple(row.text(name) for name in key), (row, value))
    return list(kept.values()), _nonzero({"words that stand twice": len(rows) - len(kept)}) | left_out


def _agreeing(table: Table, key: Sequence[str], column: str) -> tuple[list[tuple[Row, float | None]], dict[str, int]]:
    """Return the rows that have a key with their numbers, and the count of those without one.

    Raises:
        ValueError: two rows of a key have different numbers, or no row has a key.
    """
    first: dict[tuple[str, ...], tuple[Row, float | None]] = {}
    kept: list[tuple[Row, float | None]] = []
    for row in table.rows:
        words = tuple(row.text(name) for name in key)
        value = row.number_if_any(column)
        if not all(words):
            continue
        one, said = first.setdefault(words, (row, value))
        if said != value:
            raise ValueError(
                f"{row.where}: expected one {column} of {', '.join(words)}, got {row.fields[column] or 'none'} "
                f"after {one.fields[column] or 'none'} (line {one.where.rpartition(' ')[2]})"
            )
        kept.append((row, value))
    if not kept:
        raise ValueError(f"{table.url}: expected rows with a {' and a '.join(key)}, got none among {len(table.rows)}")
    named = " or ".join(table.names[name] for name in key)
    return kept, _nonzero({f"rows without a {named}": len(table.rows) - len(kept)})


def _source(table: Table, used: int, left_out: dict[str, int]) -> Source:
    return Source(table.url, table.layout, len(table.rows), used, left_out)


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}
