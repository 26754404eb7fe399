"""Analogies, a : b :: c : target, in the layouts in which they are published.

set                       layout
Mikolov et al. 2013       four words a line, after lines `: section`; or columns a1, a2, b1, b2 (questions-words.txt)
Gupta et al. 2019         columns a, b, c, target, candidates: the answers to choose from, as sky|road|ocean

Words are taken as written, except that underscores are spaces. Lines of `#` are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from groundray.analysis.inputs.delimited import Content, Row, Source, read_content, split_rows
from groundray.storage.delimited_text import SEPARATORS, plain

WORDS = {
    "a": ("a", "a1"),
    "b": ("b", "a2"),
    "c": ("c", "b1"),
    "target": ("target", "d", "b2"),
}
CANDIDATES, SECTION = ("candidates", "choices"), ("section", "category", "relation", "type")
SECTION_LINE = ":"
BETWEEN = "|"  # candidates
UNNAMED = ""


@dataclass(frozen=True)
class Question:
    """A question: a is to b as c is to the target.

    Attributes:
        candidates: distinct answers to choose from, the target among them; empty for any word of a vocabulary.
        section: name of its kind; empty if it has none.
    """

    a: str
    b: str
    c: str
    target: str
    candidates: tuple[str, ...] = ()
    section: str = UNNAMED

    @property
    def given(self) -> tuple[str, str, str]:
        return self.a, self.b, self.c

    @property
    def words(self) -> tuple[str, ...]:
        """All words, each once."""
        return tuple(dict.fromkeys((*self.given, self.target, *self.candidates)))


@dataclass(frozen=True)
class Analogies:
    """Distinct questions, in the file's order."""

    questions: tuple[Question, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    source: Source | None = field(default=None, repr=False, compare=False)


def read_analogies(url: str | Path) -> Analogies:
    """Read analogies. Questions without all words, and those that stand twice, are left out and counted.

    Raises:
        ValueError: a line has not four words, or another number of fields than the first; the candidates are fewer than
            two, or without the target; the message names the line.
    """
    content = read_content(url)
    content = replace(content, lines=tuple(line for line in content.lines if not line[1].startswith("#")))
    if not content.lines:
        raise ValueError(f"{url}: expected analogies, got comments alone")
    sections = any(text.startswith(SECTION_LINE) for _, text in content.lines)
    rows, layout = _of_sections(content) if sections else _of_table(content)
    questions: list[Question] = []
    partial = total = 0
    for row in rows:
        total += 1
        words = {name: row.text(name) for name in WORDS}
        if not all(words.values()):
            partial += 1
            continue
        section = " ".join(row.fields.get("section", UNNAMED).split())
        questions.append(Question(**words, candidates=_candidates(row, words["target"]), section=section))
    distinct = tuple(dict.fromkeys(questions))
    if not distinct:
        raise ValueError(f"{url}: expected analogies of four words, got none among {total} rows")
    counts = {
        "questions without four words": partial,
        "questions that stand twice": len(questions) - len(distinct),
    }
    left_out = {what: count for what, count in counts.items() if count}
    return Analogies(distinct, left_out, Source(str(url), layout, total, len(distinct), left_out))


def _of_sections(content: Content) -> tuple[Iterator[Row], str]:
    """Return the rows of a file of lines `: section` and lines of four words."""
    separator = "\t" if any("\t" in text for _, text in content.lines) else None

    def rows() -> Iterator[Row]:
        section = UNNAMED
        for line, text in content.lines:
            if text.startswith(SECTION_LINE):
                section = text.removeprefix(SECTION_LINE)
            else:
                yield _row_of_words(content.where(line), text.split(separator), section)

    count = sum(text.startswith(SECTION_LINE) for _, text in content.lines)
    return rows(), f"four words a line in {count} sections; {content.layout(separator or ' ')}"


def _row_of_words(where: str, parts: Sequence[str], section: str = UNNAMED) -> Row:
    if len(parts) != len(WORDS):
        raise ValueError(
            f"{where}: expected four words, a b c and the target, got {len(parts)}: {' '.join(parts)!r}; a word with "
            "spaces needs underscores"
        )
    return Row(where, {**dict(zip(WORDS, parts, strict=True)), "section": section})


def _of_table(content: Content) -> tuple[Iterator[Row], str]:
    """Return the rows of a table, whose first row names its columns or has four words like all others."""
    problem: ValueError | None = None
    for separator in [content.separator] if content.separator else SEPARATORS:
        try:
            rows = split_rows(content, separator)
        except ValueError as error:
            named = [plain(title) for title in content.lines[0][1].split(separator)]
            problem = problem or (error if _places(named) else None)
            continue
        (_, titles), body = rows[0], rows[1:]
        if places := _places([plain(title) for title in titles]):
            if not body:
                raise ValueError(f"{content.url} names its columns, and has no row")
            layout = f"columns {', '.join(titles[place] for place in places.values())}; {content.layout(separator)}"
            return (
                Row(content.where(line), {name: parts[place] for name, place in places.items()}) for line, parts in body
            ), layout
        if len(titles) == len(WORDS):
            return (
                (_row_of_words(content.where(line), parts) for line, parts in rows),
                f"four words a line; {content.layout(separator)}",
            )
    line, text = content.lines[0]
    raise problem or ValueError(
        f"{content.where(line)}: expected columns {', '.join(known[0] for known in WORDS.values())}, or four words a "
        f"line, got {text[:100]!r}"
    )


def _places(names: Sequence[str]) -> dict[str, int]:
    """Return the places of the named columns; empty if one of the four words has none."""
    columns: Mapping[str, tuple[str, ...]] = {**WORDS, "candidates": CANDIDATES, "section": SECTION}
    found = {
        column: names.index(name)
        for column, known in columns.items()
        if (name := next((name for name in known if name in names), None)) is not None
    }
    return found if found.keys() >= WORDS.keys() else {}


def _candidates(row: Row, target: str) -> tuple[str, ...]:
    text = row.text("candidates") if "candidates" in row.fields else ""
    if not text:
        return ()
    found = tuple(dict.fromkeys(one for part in text.split(BETWEEN) if (one := part.strip())))
    if target not in found:
        raise ValueError(
            f"{row.where}: expected the target {target} among the candidates, got {', '.join(found)}: add it"
        )
    if len(found) < 2:
        raise ValueError(
            f"{row.where}: expected at least two candidates, got {', '.join(found)}: leave the field empty"
        )
    return found
