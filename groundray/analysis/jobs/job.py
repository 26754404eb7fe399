"""An analysis that is ready to run, and what the analyses share: the files that a request names, and their counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from groundray.analysis.exported import Missing
from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.delimited import Source
from groundray.analysis.inputs.lexicon import Lexicon, Selection
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis, Table

CATEGORY_FILES = "categories.csv, semcat100.csv or semcat/"
Read = TypeVar("Read")


@dataclass(frozen=True)
class AnalysisJob:
    """An analysis that is ready to run.

    Attributes:
        texts: texts whose vectors it needs.
        run: computes the analysis from the vectors of these texts.
        sources: what was read of each file.
        notes: a line for each file that could not be used.
    """

    texts: tuple[str, ...]
    run: Callable[[Lexicon], Analysis]
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()

    def analyse(self, lexicon: Lexicon) -> Analysis:
        """Return the analysis, with a table of the files that were read."""
        analysis = self.run(lexicon)
        files = (_describe(self.sources),) if self.sources else ()
        return replace(analysis, tables=(*analysis.tables, *files))


def _describe(sources: Sequence[Source]) -> Table:
    """Return a table of the files that were read."""
    return Table(
        "Files read",
        ("file", "rows", "used", "left out", "read as"),
        tuple(
            (
                source.url.rstrip("/").rpartition("/")[2],
                source.rows,
                source.used,
                ", ".join(f"{count:,} {what}" for what, count in source.left_out.items()) or "nothing",
                source.layout,
            )
            for source in sources
        ),
    )


def job_of(texts: tuple[str, ...], run: Callable[[Lexicon], Analysis], *sources: Source | None) -> AnalysisJob:
    """Return a job with the files that it was read from; None is a set that is built in."""
    read_from = tuple(source for source in sources if source)
    return AnalysisJob(texts, run, read_from, tuple(note for source in read_from for note in source.notes))


def path_of(request: AnalysisRequest, kind: str, files: str) -> str:
    """Return the path or URL of norms of a kind.

    Raises:
        Missing: there are none.
    """
    norms = request.norms or Norms()
    path: str | None = getattr(norms, kind)
    if path is None:
        raise Missing(f"no {files} {norms.looked_for}: give --{kind} FILE")
    return path


def read_sets(
    request: AnalysisRequest, kind: str, files: str, read_file: Callable[[str], Read]
) -> tuple[dict[str, Read], tuple[str, ...]]:
    """Return the sets of a kind by name, and why files could not be read: one of a folder spoils only itself.

    Args:
        kind: of catalog.SETS.
        files: what was expected, for the error.
        read_file: reads a path or URL.

    Raises:
        Missing: there are none.
        OSError, ValueError: a file that was given by its name cannot be read, or none of a folder.
    """
    path_of(request, kind, files)
    norms = request.norms or Norms()
    sets: dict[str, Read] = {}
    problems: list[str] = []
    for name, file in getattr(norms, kind).items():
        try:
            sets[name] = read_file(file)
        except (OSError, ValueError) as error:
            if kind not in norms.found:
                raise
            problems.append(str(error))
    if not sets:
        raise ValueError(problems[0])
    return sets, tuple(problems)


def checkpoint_of(request: AnalysisRequest) -> str:
    """Return the checkpoint of a request.

    Raises:
        Missing: there is none.
    """
    if request.checkpoint is None:
        raise Missing("it needs a whole model: give --checkpoint DIR")
    return request.checkpoint


def rated_rows(request: AnalysisRequest) -> tuple[read.Categories, tuple[Source | None, ...]]:
    """Return words by category, with the ratings of the norms if there are any; and their sources."""
    table = read.read_categories(path_of(request, "categories", CATEGORY_FILES))
    ratings = (request.norms or Norms()).concreteness
    if ratings is None:
        return table, (table.source,)
    rated = read.read_ratings(ratings)
    rows = replace(table.rated_by(rated), left_out=table.left_out | rated.left_out)
    return rows, (table.source, rated.source)


def of_kind(kind: str, selection: Selection) -> dict[str, int]:
    """Return the counts of omitted texts, named by the kind of text."""
    return {name.replace("words", kind, 1): count for name, count in selection.left_out.items()}
