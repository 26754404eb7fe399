"""Human norms and word sets, read from files on a local path or a URL.

Words, phrases and concepts are taken as written, except that underscores are spaces (`ice_cream`). Unusable rows are
counted in `left_out`; contradictions and unreadable rows are errors that name the line.

data                    columns, and published files that have them
ratings                 word, concreteness: Brysbaert et al. 2014, as `Word`, `Conc.M`
categories              category, word[, concreteness]; or a folder of `animal-268.txt`, one word per line: SemCat
features                concept, feature, production_frequency[, type]
                        McRae et al. 2005 (CONCS_FEATS_concstats): Concept, Feature, Prod_Freq, BR_Label
                        CSLB (Devereux et al. 2014): concept, feature, feature type, pf
                        Buchanan et al. 2019: cue, translated, frequency_translated; or feature, frequency_feature
phrases                 phrase, target
pairs                   word, word, score, separated by tabs, commas or spaces, with a row of names or without:
                        SimLex-999, SimVerb-3500, WordSim-353, MEN, RG-65
words                   one word per line, or a table with a column `word`
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from groundray.analysis.inputs.delimited import Row, number, plain, read_lines, read_rows, spaced
from groundray.storage.folder import Folder

RATING = ("concreteness", "conc_m")
PAIR_WORDS = (("word1", "word_1", "verb1", "first"), ("word2", "word_2", "verb2", "second"))
PAIR_SCORES = ("score", "similarity", "simlex999", "simverb3500", "human_mean", "human", "rating", "mean")
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
SENSE = re.compile(r"\s*\([^()]*\)$")  # the `(animal)` of McRae's `bat_(animal)`


@dataclass(frozen=True)
class Ratings:
    """Concreteness of each word, on the raters' scale."""

    of: dict[str, float]
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Categories:
    """Words by category: one row for each category of a word.

    Attributes:
        concreteness: rating of each row's word; NaN if it has none.
    """

    category: tuple[str, ...]
    word: tuple[str, ...]
    concreteness: Float[np.ndarray, " row"]
    left_out: dict[str, int] = field(default_factory=dict)

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
            _nonzero(self.left_out | {"rows without a concreteness rating": len(has) - len(kept)}),
        )


@dataclass(frozen=True)
class Features:
    """A table of concepts and their features.

    Attributes:
        concepts: distinct words or phrases.
        types: type of each feature; UNTYPED if the file has none.
    """

    concepts: tuple[str, ...]
    features: tuple[str, ...]
    has: Bool[np.ndarray, "concept feature"]
    types: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Phrases:
    """Phrases, each with the word that it describes. A phrase may have several."""

    phrase: tuple[str, ...]
    target: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Pairs of words with their human similarity.

    Attributes:
        repeated: number of pairs that occur more than once, in either order. They are kept: published sets contain
            some, and are scored with them.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    score: Float[np.ndarray, " pair"]
    repeated: int


@dataclass(frozen=True)
class Words:
    """Distinct words or phrases."""

    words: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)


def read_ratings(url: str | Path) -> Ratings:
    """Read the concreteness of words.

    Raises:
        ValueError: the table cannot be read, a word has two ratings, or no word has a rating.
    """
    kept, left_out = _once(read_rows(url, {"word": ("word",), "concreteness": RATING}), ("word",), "concreteness")
    of = {row.text("word"): rating for row, rating in kept if rating is not None}
    if not of:
        raise ValueError(f"{url}: expected words with a rating, got none among {len(kept)}")
    return Ratings(of, _nonzero({**left_out, "words without a concreteness rating": len(kept) - len(of)}))


def read_categories(url: str | Path) -> Categories:
    """Read words by category, from a table or from a folder of text files.

    Raises:
        ValueError: the table or a file cannot be read, a word has two ratings in a category, or a text file does not
            have the number of words in its name.
    """
    folder = Folder.at(url)
    if folder.exists() and not folder.filesystem.get_file_info(folder.path).is_file:
        return _categories_of(folder)
    columns = {"category": ("category",), "word": ("word",), "concreteness": RATING}
    rows = read_rows(url, columns, optional=("concreteness",))
    kept, left_out = _once(rows, ("category", "word"), "concreteness")
    return Categories(
        tuple(row.fields["category"] for row, _ in kept),
        tuple(row.text("word") for row, _ in kept),
        np.array([np.nan if rating is None else rating for _, rating in kept]),
        left_out,
    )


def _categories_of(folder: Folder) -> Categories:
    """Read SemCat as published: one file per category, one word per line."""
    found: dict[tuple[str, str], None] = {}
    repeated = other = 0
    for name in folder.names():
        named = TEXT_FILE.fullmatch(name)
        if not named:
            other += 1
            continue
        file = f"{folder}/{name}"
        words = [spaced(line) for _, line in read_lines(file)]
        if named["count"] and len(words) != int(named["count"]):
            raise ValueError(
                f"{file}: expected {named['count']} words, as the name says, got {len(words)}: "
                "fetch the file again, or name it after what it holds"
            )
        rows = {(named["category"], word): None for word in words}
        repeated += len(words) - len(rows)
        found |= rows
    if not found:
        raise ValueError(f"expected a text file a category in {folder}, such as animal-268.txt, found none")
    categories, words = zip(*found, strict=True)
    left_out = {"words that stand twice in their category": repeated, "files that are not .txt": other}
    return Categories(categories, words, np.full(len(words), np.nan), _nonzero(left_out))


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
    rare = repeated = 0
    for row in read_rows(url, columns, optional=("type",)):
        concept, feature = row.text("concept"), row.text("feature")
        concepts[concept] = None
        if row.number("frequency") < min_people:
            rare += 1
            continue
        repeated += (concept, feature) in named
        named[concept, feature] = None
        types.setdefault(feature, Counter())[_type(row.fields.get("type", UNTYPED))] += 1
    if not named:
        raise ValueError(
            f"{url}: expected a feature named at least {min_people:g} times, got none: lower the threshold"
        )
    senses = Counter(map(_word, concepts))
    rows = {concept: place for place, concept in enumerate(one for one in concepts if senses[_word(one)] == 1)}
    columns_of = {feature: place for place, feature in enumerate(types)}
    has = np.zeros((len(rows), len(types)), dtype=np.bool_)
    for concept, feature in named:
        if concept in rows:
            has[rows[concept], columns_of[feature]] = True
    commonest = [counts.most_common(1)[0] for counts in types.values()]
    return Features(
        tuple(map(_word, rows)),
        tuple(types),
        has,
        tuple(kind for kind, _ in commonest),
        _nonzero(
            {
                f"features of concepts that fewer than {min_people:g} people named": rare,
                "features that a concept has twice": repeated,
                "concepts that are the same word as another": len(concepts) - len(rows),
                "types that are not the commonest of their feature": sum(
                    counts.total() - most for counts, (_, most) in zip(types.values(), commonest, strict=True)
                ),
            }
        ),
    )


def _word(concept: str) -> str:
    """Return a concept without its sense in brackets."""
    return SENSE.sub("", concept)


def _type(text: str) -> str:
    kind = spaced(text).lower()
    return TYPES.get(kind, kind)


def read_phrases(url: str | Path) -> Phrases:
    """Read phrases with their targets.

    Raises:
        ValueError: the table cannot be read.
    """
    rows = [
        (row.text("phrase"), row.text("target"))
        for row in read_rows(url, {"phrase": ("phrase",), "target": ("target",)})
    ]
    phrases, targets = zip(*dict.fromkeys(rows), strict=True)
    return Phrases(phrases, targets, _nonzero({"phrases that stand twice": len(rows) - len(phrases)}))


def read_pairs(url: str | Path) -> Pairs:
    """Read pairs of words with their similarity.

    The first row names the columns if it has no number after its first two fields. Without names, the score is the
    first number after the two words (in SimVerb-3500, after the part of speech).

    Raises:
        ValueError: a line has another number of fields than the first, or no number as its score; or the column names
            are unknown.
    """
    lines = list(read_lines(url))
    if not lines:
        raise ValueError(f"{url} is empty")
    separator = next((one for one in "\t," if one in lines[0][1]), None)
    rows = [(where, [part.strip() for part in line.split(separator)]) for where, line in lines]
    where, first = rows[0]
    if len(first) < 3:
        raise ValueError(f"{where}: expected two words and a score, got {lines[0][1]!r}")
    numbers = [place for place, part in enumerate(first) if place > 1 and _is_number(part)]
    if numbers:
        places = [0, 1, numbers[0]]
    else:
        names, rows = [plain(part) for part in first], rows[1:]
        wanted = (*PAIR_WORDS, PAIR_SCORES)
        found = [next((names.index(name) for name in known if name in names), None) for known in wanted]
        places = [place for place in found if place is not None]
        if len(places) < len(wanted) or not rows:
            raise ValueError(
                f"{where}: expected two words and a number, or names: {PAIR_WORDS[0][0]}, {PAIR_WORDS[1][0]} and one "
                f"of {', '.join(PAIR_SCORES)}, with pairs below them; got {lines[0][1]!r}"
            )
    pairs = []
    for where, parts in rows:
        if len(parts) != len(first):
            raise ValueError(f"{where}: expected {len(first)} fields as in the first line, got {len(parts)}")
        row = Row(where, dict(zip(("first word", "second word", "score"), (parts[one] for one in places), strict=True)))
        pairs.append((row.text("first word"), row.text("second word"), row.number("score")))
    firsts, seconds, scores = zip(*pairs, strict=True)
    distinct = {frozenset(pair) for pair in zip(firsts, seconds, strict=True)}
    return Pairs(firsts, seconds, np.array(scores), len(pairs) - len(distinct))


def _is_number(text: str) -> bool:
    try:
        number(text, "", "")
    except ValueError:
        return False
    return True


def read_words(url: str | Path) -> Words:
    """Read words, one per line, or from the column `word` of a table (any file with tabs or commas).

    Raises:
        ValueError: there is no word, or the table lacks that column.
    """
    first = next((line for _, line in read_lines(url)), "")
    if "\t" in first or "," in first:
        found = [row.text("word") for row in read_rows(url, {"word": ("word",)})]
    else:
        found = [spaced(line) for _, line in read_lines(url)]
    words = tuple(dict.fromkeys(found))
    if not words:
        raise ValueError(f"{url} is empty: expected a word a line")
    return Words(words, _nonzero({"words that stand twice": len(found) - len(words)}))


def _once(
    rows: Iterable[Row], key: Sequence[str], column: str
) -> tuple[list[tuple[Row, float | None]], dict[str, int]]:
    """Return the first row of each key with its number, and the count of rows that repeat one.

    Raises:
        ValueError: two rows of a key have different numbers.
    """
    kept: dict[tuple[str, ...], tuple[Row, float | None]] = {}
    repeated = 0
    for row in rows:
        words = tuple(row.text(name) for name in key)
        value = row.number_if_any(column)
        first, said = kept.setdefault(words, (row, value))
        if said != value:
            raise ValueError(
                f"{row.where}: expected one {column} of {', '.join(words)}, got {row.fields[column] or 'none'} "
                f"after {first.fields[column] or 'none'} (line {first.where.rpartition(' ')[2]})"
            )
        repeated += first is not row
    what = "words that stand twice in their category" if "category" in key else "words that stand twice"
    return list(kept.values()), _nonzero({what: repeated})


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}
