"""Cohesion of categories of words, in the main set and in further ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs import published
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import CATEGORY_FILES, AnalysisJob, job_of, of_kind, path_of
from groundray.analysis.measures import categories as measures
from groundray.analysis.measures.statistics import slug
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis


def job(request: AnalysisRequest) -> AnalysisJob:
    main = read.read_categories(path_of(request, "categories", CATEGORY_FILES))
    further: dict[str, read.Categories] = {}
    problems: list[str] = []
    for name, file in ((request.norms or Norms()).category_sets or {}).items():
        try:
            further[name] = read.read_categories(file)
        except (OSError, ValueError) as error:
            problems.append(f"set of categories not read: {error}")

    def run(lexicon: Lexicon) -> Analysis:
        analysis, found = _measured(main, lexicon), {}
        for name, rows in further.items():
            try:
                found[name] = _measured(rows, lexicon)
            except ValueError as error:  # such as words of one category alone that the models know
                reason = f"further sets of categories without a silhouette ({name}: {error})"
                analysis = replace(analysis, left_out={**analysis.left_out, reason: 1})
        return _joined(analysis, found)

    words = (*main.word, *(word for rows in further.values() for word in rows.word))
    own = job_of(words, run, main.source, *(rows.source for rows in further.values()))
    return replace(own, notes=(*own.notes, *problems))


def _measured(rows: read.Categories, lexicon: Lexicon) -> Analysis:
    selection = lexicon.select(rows.word)
    return measures.categories(
        selection.vectors,
        [rows.word[row] for row in selection.rows],
        [rows.category[row] for row in selection.rows],
        rows.left_out | of_kind(rows.kinds.plural.text, selection),
        rows.kinds,
        published.is_semcat(rows.word, rows.category),
    )


def _joined(main: Analysis, further: Mapping[str, Analysis]) -> Analysis:
    """Return the main set's analysis with the medians and tables of further sets, named by the set."""
    for name, other in further.items():
        own = (
            replace(one, key=f"{slug(name)}/{one.key}", name=f"{name}: {one.name}")
            for one in other.measures
            if one.key.endswith("/median")
        )
        main = replace(
            main,
            measures=(*main.measures, *own),
            tables=(*main.tables, *(replace(one, title=f"{name}: {one.title}") for one in other.tables)),
            left_out=dict(Counter(main.left_out) + Counter(other.left_out)),
        )
    return main
