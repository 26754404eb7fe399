"""Analyses as jobs: where the data of each is, which texts it needs vectors of, and what it computes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from groundray.analysis.exported import (
    Missing,
    batches_of,
    choose_shards,
    language_streams,
    measure_relations,
    measure_retrieval,
    reading_settings,
    trained_stages,
)
from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs import published
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.delimited import Source
from groundray.analysis.inputs.embedding import IN_ISOLATION, Options
from groundray.analysis.inputs.lexicon import Lexicon, Selection
from groundray.analysis.inputs.word_pairs import Pairs, read_pairs
from groundray.analysis.measures import (
    axes,
    categories,
    composition,
    feature_norms,
    image_text_retrieval,
    relations,
    similarity,
)
from groundray.analysis.measures.image_grounded_similarity import (
    WordsThroughImages,
    similarities,
    texts_at_once,
)
from groundray.analysis.result import Analysis, Table
from groundray.data.schema import Dataset
from groundray.data.tokenization import WordPieceTokenizer
from groundray.model import export
from groundray.model.heads import GroundingHeads
from groundray.stage.contrastive import captioned_images
from groundray.storage.folder import Folder

BATCH_SIZE = 64
THROUGH_IMAGES = "composition_through_images"
CATEGORY_FILES = "categories.csv, semcat100.csv or semcat/"


@dataclass(frozen=True)
class AnalysisRequest:
    """A request for analyses: models, data and options.

    Attributes:
        checkpoint: a run's model/ folder, on a path or a URL.
        models: other models, as NAME=FOLDER.
        norms: None for the norms that the run's settings name.
        images, graphs: shards of captioned images and of scene graphs; None for the run's validation shards.
        batch_size: images encoded at once.
        embedding: how a text's vector is computed.
        classifiers: options of the classifiers of features.
        min_people: number of people who must have named a feature of a concept.
        components: number of principal axes.
        fit_on: file of words that the axes are fitted on; None for the words of the categories, or those of the run's
            setting `analysis.fit_on`.
        vocabulary: file of words among which a phrase's target is ranked (default: the words of the categories).
    """

    checkpoint: str | None = None
    models: tuple[str, ...] = ()
    norms: Norms | None = None
    images: str | None = None
    graphs: str | None = None
    batch_size: int = BATCH_SIZE
    embedding: Options = IN_ISOLATION
    classifiers: feature_norms.ClassifierOptions = feature_norms.DEFAULT
    min_people: float = 1
    components: int = 3
    fit_on: str | None = None
    vocabulary: str | None = None

    def resolved(self) -> AnalysisRequest:
        """Return the request with norms and words to fit axes on: the given ones, or else those of the run.

        The run's norms are left out where they no longer exist.
        """
        if self.checkpoint is None:
            return replace(self, norms=self.norms or Norms())
        settings = export.about(self.checkpoint).settings.get("analysis", {})
        request = replace(self, fit_on=self.fit_on or settings.get("fit_on"))
        if self.norms is not None:
            return request
        own = settings.get("norms")
        try:
            return replace(request, norms=Norms.at(own) if own else Norms())
        except FileNotFoundError:
            return replace(request, norms=Norms(looked_for=f"in {own}, where the run had them (--norms DIR)"))

    def made_of(self) -> dict[str, str]:
        """Return checksums of all that the report depends on: the exported model's description, norms and words."""
        checksums = {"settings": _digest(repr(replace(self, checkpoint=None)).encode())}
        if self.checkpoint:
            checksums["checkpoint"] = _digest(Folder.at(self.checkpoint).read_bytes(export.ABOUT))
        words = [path for path in (self.fit_on, self.vocabulary) if path]
        return checksums | {path: _digest_of(path) for path in ((self.norms or Norms()).paths + words)}


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


def _job(texts: tuple[str, ...], run: Callable[[Lexicon], Analysis], *sources: Source | None) -> AnalysisJob:
    """Return a job with the files that it was read from; None is a set that is built in."""
    read_from = tuple(source for source in sources if source)
    return AnalysisJob(texts, run, read_from, tuple(note for source in read_from for note in source.notes))


def _axes(request: AnalysisRequest) -> AnalysisJob:
    rows, sources = _rows(request)
    if not np.isfinite(rows.concreteness).any():
        raise Missing(
            f"no concreteness of the categories' words {(request.norms or Norms()).looked_for}: "
            "give --concreteness FILE"
        )
    fit_on = read.read_words(request.fit_on) if request.fit_on else None

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(rows.word)
        other = lexicon.select(fit_on.words) if fit_on else None
        return axes.axes(
            selection.vectors,
            [rows.word[row] for row in selection.rows],
            [rows.category[row] for row in selection.rows],
            rows.concreteness[selection.rows],
            request.components,
            other.vectors if other else None,
            f"of {request.fit_on}",
            rows.left_out | selection.left_out,
        )

    texts = (*rows.word, *(fit_on.words if fit_on else ()))
    return _job(texts, run, *sources, fit_on.source if fit_on else None)


def _norms(request: AnalysisRequest) -> AnalysisJob:
    table = read.read_features(_path(request, "features", "features.csv"), request.min_people)

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(table.concepts)
        return feature_norms.feature_norms(
            selection.vectors,
            [table.concepts[row] for row in selection.rows],
            table.features,
            table.has[selection.rows],
            table.types,
            request.classifiers,
            left_out=table.left_out | selection.left_out,
        )

    return _job(table.concepts, run, table.source)


def _categories(request: AnalysisRequest) -> AnalysisJob:
    rows = read.read_categories(_path(request, "categories", CATEGORY_FILES))

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(rows.word)
        return categories.categories(
            selection.vectors,
            [rows.word[row] for row in selection.rows],
            [rows.category[row] for row in selection.rows],
            rows.left_out | selection.left_out,
        )

    return _job(rows.word, run, rows.source)


def _composition(request: AnalysisRequest) -> AnalysisJob:
    phrases = _phrases(request)
    vocabulary, source = _vocabulary(request)

    def run(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.select(phrases.phrase), lexicon.select(vocabulary)
        return composition.composition(
            own.vectors,
            words.vectors,
            [phrases.phrase[row] for row in own.rows],
            [phrases.target[row] for row in own.rows],
            [vocabulary[row] for row in words.rows],
            phrases.left_out | _of_kind("phrases", own) | _of_kind("words", words),
        )

    return _job((*phrases.phrase, *vocabulary), run, phrases.source, source)


def _through_images(request: AnalysisRequest) -> AnalysisJob:
    phrases = _phrases(request)
    vocabulary, source = _vocabulary(request)
    checkpoint = _checkpoint(request)
    about = export.about(checkpoint)
    trained_stages(about, "grounding")
    settings = reading_settings(about, "grounding", request.batch_size)
    stage = settings.stage("grounding")
    shards = choose_shards(stage.val, request.images)

    def run(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.select(phrases.phrase), lexicon.select(vocabulary)
        kept = [vocabulary[row] for row in words.rows]
        exported = export.load(checkpoint, "grounding")

        def similarities_of(texts: Sequence[str]) -> Float[np.ndarray, "text image"]:
            return similarities(
                exported.model,
                WordPieceTokenizer.of(exported.tokenizer, stage.max_tokens),
                texts,
                batches_of(captioned_images(settings, stage, exported.tokenizer, shards, shuffle=False)),
                stage.similarity,
                stage.special_tokens,
                stage.alignment,
            )

        at_once = texts_at_once(
            Dataset.open(shards, "captions").rows, exported.model.head(GroundingHeads).language.out_features
        )
        through_images = WordsThroughImages(similarities_of, [phrases.phrase[row] for row in own.rows], kept, at_once)
        model = language_streams(about)["grounding"]
        return composition.composition(
            {model: through_images.of_phrases},
            {model: through_images},
            [phrases.phrase[row] for row in own.rows],
            [phrases.target[row] for row in own.rows],
            kept,
            phrases.left_out | _of_kind("phrases", own) | _of_kind("words", words),
            through_images=True,
        )

    return _job((*phrases.phrase, *vocabulary), run, phrases.source, source)


def _phrases(request: AnalysisRequest) -> read.Phrases:
    """Return phrases with their targets: those of the norms, or else the paper's nine."""
    path = (request.norms or Norms()).phrases
    if path:
        return read.read_phrases(path)
    pairs = list(published.PHRASES)
    return read.Phrases(tuple(phrase for phrase, _ in pairs), tuple(target for _, target in pairs))


def _vocabulary(request: AnalysisRequest) -> tuple[tuple[str, ...], Source | None]:
    """Return the words that phrases are compared with, their targets included, and their source."""
    if request.vocabulary:
        given = read.read_words(request.vocabulary)
        words, source = given.words, given.source
    else:
        table = read.read_categories(_path(request, "categories", f"{CATEGORY_FILES} for a vocabulary"))
        words, source = table.word, table.source
    return tuple(dict.fromkeys((*words, *_phrases(request).target))), source


def _similarity(request: AnalysisRequest) -> AnalysisJob:
    _path(request, "pairs", "similarity/ with word pairs")
    norms = request.norms or Norms()
    sets: dict[str, Pairs] = {}
    problems: list[str] = []
    for name, file in (norms.pairs or {}).items():
        try:
            sets[name] = read_pairs(file)
        except (OSError, ValueError) as error:
            if not norms.pairs_found:
                raise
            problems.append(str(error))
    if not sets:
        raise ValueError(problems[0])
    words = tuple(dict.fromkeys(word for pairs in sets.values() for word in (*pairs.first, *pairs.second)))

    def run(lexicon: Lexicon) -> Analysis:
        selection = lexicon.select(words)
        return similarity.similarity(
            selection.vectors,
            [words[row] for row in selection.rows],
            {
                name: list(zip(pairs.first, pairs.second, pairs.score.tolist(), strict=True))
                for name, pairs in sets.items()
            },
            {**_unread(sets), **selection.left_out},
            {name: len(pairs.score) + sum(pairs.left_out.values()) for name, pairs in sets.items()},
        )

    job = _job(words, run, *(pairs.source for pairs in sets.values()))
    return replace(job, notes=tuple(f"word pairs not read: {problem}" for problem in problems))


def _unread(sets: Mapping[str, Pairs]) -> dict[str, int]:
    """Return the counts of pairs that were left out when the sets were read."""
    return dict(sum((Counter(pairs.left_out) for pairs in sets.values()), Counter()))


def _of_kind(kind: str, selection: Selection) -> dict[str, int]:
    """Return the counts of omitted texts, named by the kind of text."""
    return {name.replace("words", kind, 1): count for name, count in selection.left_out.items()}


def _path(request: AnalysisRequest, kind: str, files: str) -> str:
    """Return the path or URL of norms of a kind.

    Raises:
        Missing: there are none.
    """
    norms = request.norms or Norms()
    path: str | None = getattr(norms, kind)
    if path is None:
        raise Missing(f"no {files} {norms.looked_for}: give --{kind} FILE")
    return path


def _rows(request: AnalysisRequest) -> tuple[read.Categories, tuple[Source | None, ...]]:
    """Return words by category, with the ratings of the norms if there are any; and their sources."""
    table = read.read_categories(_path(request, "categories", CATEGORY_FILES))
    ratings = (request.norms or Norms()).concreteness
    if ratings is None:
        return table, (table.source,)
    rated = read.read_ratings(ratings)
    rows = replace(table.rated_by(rated), left_out=table.left_out | rated.left_out)
    return rows, (table.source, rated.source)


def _retrieval(request: AnalysisRequest) -> AnalysisJob:
    checkpoint = _checkpoint(request)
    about = export.about(checkpoint)
    for name in trained_stages(about, "grounding", "retrieval"):
        choose_shards(about.settings[name]["val"], request.images)

    def run(_: Lexicon) -> Analysis:
        return image_text_retrieval.analysis(
            measure_retrieval(checkpoint, request.images, request.batch_size), language_streams(about)
        )

    return AnalysisJob((), run)


def _relations(request: AnalysisRequest) -> AnalysisJob:
    checkpoint = _checkpoint(request)
    about = export.about(checkpoint)
    trained_stages(about, "relational")
    choose_shards(about.settings["relational"]["val"], request.graphs)

    def run(_: Lexicon) -> Analysis:
        return relations.analysis(
            measure_relations(checkpoint, request.graphs, request.batch_size), language_streams(about)["relational"]
        )

    return AnalysisJob((), run)


ANALYSES: dict[str, Callable[[AnalysisRequest], AnalysisJob]] = {
    "axes": _axes,
    "norms": _norms,
    "categories": _categories,
    "composition": _composition,
    THROUGH_IMAGES: _through_images,
    "similarity": _similarity,
    "retrieval": _retrieval,
    "relations": _relations,
}


def _checkpoint(request: AnalysisRequest) -> str:
    """Return the checkpoint of a request.

    Raises:
        Missing: there is none.
    """
    if request.checkpoint is None:
        raise Missing("it needs a whole model: give --checkpoint DIR")
    return request.checkpoint


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: str) -> str:
    """Return the checksum of a file, or of a folder's files with their names."""
    folder = Folder.at(path)
    if folder.filesystem.get_file_info(folder.path).is_file:
        return _digest(folder.parent.read_bytes(folder.name))
    return _digest(b"".join(name.encode() + folder.read_bytes(name) for name in folder.files()))
