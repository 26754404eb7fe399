"""Words rated on several dimensions, in the layouts in which such ratings are published.

The words are in the column `word`, and each other column of numbers is a dimension. If columns are named as means
(`Auditory.mean`; `AROU M` beside `AROU SD`), only these are dimensions. Columns of text, properties of the words such
as their length, and columns that belong to no mean are not dimensions; the notes name them.

set                       layout
Binder et al. 2016        word, mean r, 65 attributes, word length, word frequency
Warriner et al. 2013      word, valence, arousal, dominance; or as published: Word, V.Mean.Sum, V.SD.Sum, V.Rat.Sum, ...
Glasgow (Scott et al. 2019)  two rows of titles: Words, Length, AROU, , , VAL ...; below: , , M, SD, N, M ...
Lancaster (Lynott et al. 2020)  Word, Auditory.mean, ..., Auditory.SD, ...
THINGS (Stoinski et al. 2024)   Word, property_manmade_mean, property_manmade_SD, ...

Reliability is the share of a dimension's variance over words that another sample of raters would repeat. It is known
where the file has halves, `NAME half1` and `NAME half2` (Spearman and Brown 1910), or else standard deviations with
numbers of raters, `NAME SD` and `NAME N`: 1 - mean(SD^2 / N) / variance of the means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
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
    read_table,
    split_rows,
    without_sense,
)
from groundray.storage.delimited_text import SEPARATORS, plain

WORD = ("word", "words", "concept", "cue", "item")  # in order of preference
# a column's last words, by what they say of the dimension that stands before them
STATISTICS = {
    **dict.fromkeys(("mean", "avg", "average", "m"), "mean"),
    **dict.fromkeys(("sd", "std", "stdev"), "sd"),
    **dict.fromkeys(("n", "rat", "raters"), "n"),
    **{f"half{one}": f"half{one}" for one in (1, 2)},
}
RATERS = ("total", "raters", "n_raters", "number_of_raters", "n")  # number of raters of a word on all dimensions
PROFILE = "mean_r"  # Binder: mean correlation of a rater's ratings of the word with those of all
# properties of words or rows, and no ratings
NOT_RATED = frozenset(
    (
        "", "id", "index", "row", "nr", "uniqueid", "unique_id", "length", "word_length", "letters", "n_letters",
        "nletters", "frequency", "word_frequency", "word_log10_frequency", "log_frequency", "freq", "zipf", "subtlex",
        "bigram", "percent_known", "syllables", "sd", "std", "stdev", PROFILE, *RATERS,
    )
)  # fmt: skip
# the published file of Warriner et al.: means of all raters, and of groups of them
WARRINER = re.compile(r"(?P<name>[vad])_(?P<statistic>mean|sd|rat)_(?P<raters>sum|m|f|o|y|l|h)")
WARRINER_NAMES = {"v": "valence", "a": "arousal", "d": "dominance"}
LEAST = 3  # words with both numbers, for a reliability

# the domains of Binder et al. 2016 (table 1 and appendix)
BINDER = {
    "visual": "vision bright dark color pattern large small motion biomotion fast slow shape complexity face body",
    "somatic": "touch temperature texture weight pain",
    "auditory": "audition loud low high sound music speech",
    "gustatory": "taste",
    "olfactory": "smell",
    "motor": "head upperlimb lowerlimb practice",
    "spatial": "landmark path scene near toward away number",
    "temporal": "time duration long short",
    "causal": "caused consequential",
    "social": "social human communication self",
    "cognitive": "cognition",
    "emotional": "benefit harm pleasant unpleasant happy sad angry disgusted fearful surprised",
    "drive": "drive needs",
    "attentional": "attention arousal",
}
# the two kinds of Lynott et al. 2020
LANCASTER = {
    "perceptual": "auditory gustatory haptic interoceptive olfactory visual",
    "action": "footleg handarm head mouth torso",
}
DOMAINS = (BINDER, LANCASTER)
OTHER = "other"


@dataclass(frozen=True)
class RatedWords:
    """Words with their mean ratings on some dimensions.

    Attributes:
        words: distinct.
        ratings: NaN where a word is not rated.
        groups: group of each dimension; empty if there are none.
        reliability: of each dimension, from 0 to 1; NaN if it is not known.
        profile: mean correlation over dimensions of a rater's ratings of a word with the mean ratings of all raters;
            None if the file does not say.
    """

    words: tuple[str, ...]
    dimensions: tuple[str, ...]
    ratings: Float[np.ndarray, "word dimension"]
    groups: tuple[str, ...] = ()
    reliability: Float[np.ndarray, " dimension"] = field(default_factory=lambda: np.empty(0))
    profile: Float[np.ndarray, " word"] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table hold.

    Attributes:
        titles: title of each column.
        word: place of the column of words.
        dimensions: places of the columns of each dimension, by its name: `mean`, and any of the other STATISTICS.
        raters, profile: places of the columns that say this of a whole word, or None.
    """

    titles: tuple[str, ...]
    word: int
    dimensions: dict[str, dict[str, int]]
    raters: int | None
    profile: int | None


def read_rated_words(url: str | Path, groups: Mapping[str, str] | None = None) -> RatedWords:
    """Read words with their ratings.

    A word's sense in brackets, as in `bank (river)`, is removed. Senses that become the same as another word are left
    out and counted, as are words whose rows differ: they share a vector but not their ratings.

    Args:
        groups: group of each dimension by its name in plain letters, from `read_groups`. Without any of them, those of
            Binder et al. and of Lynott et al. apply, where the dimensions have their names.

    Raises:
        ValueError: there is no column of words or of numbers, a rating is no number, a dimension has two columns, or no
            word is left; the message names the line.
    """
    content = read_content(url)
    separator, rows = _split(content)
    line, titles, body = _titled(rows)
    word = _word_column(titles)
    if not body:
        raise ValueError(f"{url} names its columns, and has no row")
    texts = [place for place in range(len(titles)) if place != word and not _is_numeric([f[place] for _, f in body])]
    columns = _columns(content.where(line), titles, word, texts)
    used = sorted({place for places in columns.dimensions.values() for place in places.values()})
    used += [place for place in (columns.raters, columns.profile) if place is not None]
    values, commas = _numbers(content, body, titles, used, separator)
    kept, left_out, repeated = _distinct(content, body, word, np.stack([values[place] for place in used], axis=1))
    words, chosen = list(kept), list(kept.values())

    def column(place: int) -> Float[np.ndarray, " word"]:
        return values[place][chosen]

    means = {name: column(places["mean"]) for name, places in columns.dimensions.items()}
    raters = None if columns.raters is None else column(columns.raters)
    reliability = [
        _reliability(means[name], {what: column(place) for what, place in places.items()}, raters)
        for name, places in columns.dimensions.items()
    ]
    ratings = np.stack(list(means.values()), axis=1)
    ignored = [titles[place] or f"column {place + 1}" for place in range(len(titles)) if place not in (word, *used)]
    rated = [titles[places["mean"]] for places in columns.dimensions.values()]
    shown = rated if len(rated) <= 4 else [*rated[:2], "...", rated[-1]]
    layout = content.layout(separator, *(["decimal commas"] if commas else []))
    others = f"{url}: not dimensions: {', '.join(ignored)}" if ignored else ""
    missing = int(np.isnan(ratings).sum())
    left_out |= {"ratings that are missing": missing} if missing else {}
    left_out |= {"columns of text": len(texts)} if texts else {}
    return RatedWords(
        tuple(words),
        tuple(columns.dimensions),
        ratings,
        _groups(tuple(columns.dimensions), groups or {}),
        np.array(reliability),
        None if columns.profile is None else column(columns.profile),
        left_out,
        Source(
            str(url),
            f"{len(rated)} dimensions, columns {', '.join(shown)}; {layout}",
            len(body),
            len(words),
            left_out,
            tuple(note for note in (repeated, others) if note),
        ),
    )


def read_groups(url: str | Path) -> dict[str, str]:
    """Read the group of each dimension, by its name in plain letters, from a table with columns dimension and group.

    Raises:
        ValueError: a column is missing, or a dimension has two groups.
    """
    found: dict[str, str] = {}
    for row in read_table(url, {"dimension": ("dimension", "attribute"), "group": ("group", "domain")}).rows:
        name, group = plain_name(row.fields["dimension"]), row.text("group").lower()
        if not name or not group:
            raise ValueError(f"{row.where}: expected a dimension and its group, got {', '.join(row.fields.values())!r}")
        if found.setdefault(name, group) != group:
            raise ValueError(f"{row.where}: expected one group of {name}, got {group} after {found[name]}")
    return found


def plain_name(name: str) -> str:
    """Return the name of a dimension in small letters and digits, by which its group is found."""
    return plain(name).replace("_", "")


def _groups(dimensions: Sequence[str], given: Mapping[str, str]) -> tuple[str, ...]:
    """Return the group of each dimension: as given, or the published one where at least half of the dimensions have
    the names of at least half of those published."""
    names = [plain_name(name) for name in dimensions]
    published = [{name: group for group, members in domains.items() for name in members.split()} for domains in DOMAINS]
    fitting = (one for one in published if 2 * len(one.keys() & {*names}) >= max(len(one), len(names)))
    of = given if given.keys() & {*names} else next(fitting, {})
    return tuple(of.get(name, OTHER) for name in names) if of else ()


def _split(content: Content) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the separator under which the first row has a column of words and others, and the rows."""
    problem: ValueError | None = None
    for separator in [content.separator] if content.separator else SEPARATORS:
        titles = content.lines[0][1].split(separator)
        try:
            rows = split_rows(content, separator)
        except ValueError as error:
            if any(plain(title) in WORD for title in titles):
                problem = problem or error
            continue
        if len(rows[0][1]) > 1 and any(plain(title) in WORD for title in rows[0][1]):
            return separator, rows
    raise problem or ValueError(
        f"{content.where(content.lines[0][0])}: expected a column {' or '.join(WORD)} and columns of ratings, got "
        f"{content.lines[0][1][:100]!r}"
    )


def _titled(rows: Sequence[tuple[int, list[str]]]) -> tuple[int, tuple[str, ...], Sequence[tuple[int, list[str]]]]:
    """Return the line of the titles, the titles, and the rows below them. A second row of titles, which are all
    STATISTICS, says what the columns below a title of the first row hold, as in the Glasgow norms."""
    (line, first), body = rows[0], rows[1:]
    if not body or not any(body[0][1]) or not all(not title or plain(title) in STATISTICS for title in body[0][1]):
        return line, tuple(first), body
    titles, last = [], ""
    for title, statistic in zip(first, body[0][1], strict=True):
        last = title or last
        titles.append(f"{last} {statistic}" if statistic else title)
    return line, tuple(titles), body[1:]


def _word_column(titles: Sequence[str]) -> int:
    names = [plain(title) for title in titles]
    return next(names.index(name) for name in WORD if name in names)


def _columns(where: str, titles: tuple[str, ...], word: int, texts: Sequence[int]) -> _Columns:
    """Find the columns of each dimension.

    Raises:
        ValueError: there is no dimension, or two columns say the same of one.
    """
    names = [plain(title) for title in titles]
    numeric = [place for place in range(len(titles)) if place not in (word, *texts)]
    said = {place: _statistic(names[place]) for place in numeric}
    spread = {name for name, what in said.values() if what in ("sd", "half1", "half2")}
    # `m` and `n` are statistics only beside others
    said = {
        place: (name, what) if what and (names[place].endswith("mean") or name in spread) else (names[place], "")
        for place, (name, what) in said.items()
    }
    named = any(what == "mean" for _, what in said.values())
    dimensions: dict[str, dict[str, int]] = {}
    shown: dict[str, str] = {}
    for place, (name, what) in said.items():
        if not what and (named or names[place] in NOT_RATED):
            continue
        if not what and name not in shown:
            shown[name] = titles[place]
        of = dimensions.setdefault(name, {})
        if (what := what or "mean") in of:
            raise ValueError(f"{where}: expected one column {titles[place]!r}, got another, {titles[of[what]]!r}")
        of[what] = place
    dimensions = {shown.get(name, name.replace("_", " ")): of for name, of in dimensions.items() if "mean" in of}
    if not dimensions:
        raise ValueError(
            f"{where}: expected columns of ratings beside {titles[word]}, got {', '.join(titles) or 'none'}: a "
            "dimension is a column of numbers"
        )

    def place_of(*wanted: str) -> int | None:
        return next((names.index(name) for name in wanted if name in names and names.index(name) in numeric), None)

    return _Columns(titles, word, dimensions, place_of(*RATERS), place_of(PROFILE))


def _statistic(name: str) -> tuple[str, str]:
    """Return the dimension that a column is of, and what of it; the whole name, if the name does not say."""
    if warriner := WARRINER.fullmatch(name):
        if warriner["raters"] != "sum":
            return name, ""
        return WARRINER_NAMES[warriner["name"]], STATISTICS[warriner["statistic"]]
    stem, _, last = re.sub(r"half_([12])$", r"half\1", name).rpartition("_")
    return (stem, STATISTICS[last]) if stem and last in STATISTICS else (name, "")


def _is_numeric(texts: Sequence[str]) -> bool:
    """Return whether at least half of the fields that are not missing are numbers; False if all are missing."""
    present = [text.replace(",", ".") for text in texts if not is_missing(text)]
    return bool(present) and 2 * sum(map(_is_number, present)) >= len(present)


def _is_number(text: str) -> bool:
    try:
        number(text, "", "")
    except ValueError:
        return False
    return True


def _numbers(
    content: Content,
    body: Sequence[tuple[int, list[str]]],
    titles: Sequence[str],
    used: Sequence[int],
    separator: str,
) -> tuple[dict[int, Float[np.ndarray, " row"]], bool]:
    """Return the numbers of each column, NaN where one is missing, and whether any has decimal commas.

    Raises:
        ValueError: a field is something else.
    """
    values, commas = {}, False
    for place in used:
        fields = [(content.where(line), parts[place]) for line, parts in body]
        comma = has_decimal_commas(fields, titles[place], separator)
        commas |= comma
        values[place] = np.array(
            [
                np.nan if is_missing(text) else number(text.replace(",", ".") if comma else text, titles[place], where)
                for where, text in fields
            ]
        )
    return values, commas


def _distinct(
    content: Content,
    body: Sequence[tuple[int, list[str]]],
    word: int,
    values: Float[np.ndarray, "row column"],
) -> tuple[dict[str, int], dict[str, int], str]:
    """Return the row of each word, the counts of the other rows, and a note of the words that are rated differently.

    Raises:
        ValueError: no word is left.
    """
    rows: dict[str, list[int]] = {}
    wordless = 0
    for row, (_, parts) in enumerate(body):
        if text := Row("", {"word": parts[word]}).text("word"):
            rows.setdefault(text, []).append(row)
        else:
            wordless += 1
    differ = {
        text: own
        for text, own in rows.items()
        if not np.array_equal(values[own], np.broadcast_to(values[own[0]], values[own].shape), equal_nan=True)
    }
    senses = Counter(map(without_sense, rows))
    kept: dict[str, int] = {}
    for text, own in rows.items():
        name = without_sense(text)
        if text not in differ and (text == name or senses[name] == 1):
            kept[name] = own[0]
    if not kept:
        raise ValueError(f"{content.url}: expected words with ratings, got none among {len(body)} rows")
    counts = {
        "rows without a word": wordless,
        "rows that repeat another": sum(len(own) - 1 for text, own in rows.items() if text not in differ),
        "rows of a word with several ratings": sum(map(len, differ.values())),
        "senses of a word that is rated in others": len(rows) - len(differ) - len(kept),
    }
    named = "; ".join(f"{text} (lines {', '.join(str(body[row][0]) for row in own)})" for text, own in differ.items())
    note = f"{content.url}: words with several ratings are left out, since they have one vector: {named}"
    return kept, {what: count for what, count in counts.items() if count}, note if differ else ""


def _reliability(
    mean: Float[np.ndarray, " word"],
    of: Mapping[str, Float[np.ndarray, " word"]],
    raters: Float[np.ndarray, " word"] | None,
) -> float:
    """Return the reliability of a dimension; NaN if it is not known."""
    if "half1" in of and "half2" in of:
        both = np.isfinite(of["half1"]) & np.isfinite(of["half2"])
        first, second = of["half1"][both], of["half2"][both]
        if len(first) < LEAST or np.ptp(first) == 0 or np.ptp(second) == 0:
            return np.nan
        r = max(0.0, float(np.corrcoef(first, second)[0, 1]))
        return 2 * r / (1 + r)
    number_of = of.get("n", raters)
    if "sd" not in of or number_of is None:
        return np.nan
    known = np.isfinite(mean) & np.isfinite(of["sd"]) & (number_of > 0)
    if known.sum() < LEAST or np.ptp(mean[known]) == 0:
        return np.nan
    noise = float((of["sd"][known] ** 2 / number_of[known]).mean())
    return max(0.0, 1 - noise / float(mean[known].var(ddof=1)))
