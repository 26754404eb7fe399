"""What each analysis is made of: where its data is, which texts it needs vectors of, and what is done with them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs import published
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.embedding import IN_ISOLATION, Options
from groundray.analysis.inputs.lexicon import Lexicon, Taken
from groundray.analysis.measures import (
    axes,
    categories,
    composition,
    feature_norms,
    image_text_retrieval,
    relations,
    similarity,
)
from groundray.analysis.measures.image_grounded_similarity import similarities
from groundray.analysis.result import Analysis
from groundray.config import Settings
from groundray.data.plan import Cursor
from groundray.data.schema import INDEX, Dataset
from groundray.data.stream import Source, stream
from groundray.data.tokenization import WordPieceTokenizer
from groundray.model import export
from groundray.model.export import About
from groundray.stage.contrastive import captioned_images
from groundray.stage.protocol import vocabulary_of
from groundray.stage.relational import scene_graphs
from groundray.storage.folder import Folder

BATCH_SIZE = 64
THROUGH_IMAGES = "composition_through_images"
CATEGORY_FILES = "categories.csv, semcat100.csv or semcat/"


class Missing(ValueError):
    """What an analysis needs is not there; the others do without."""


@dataclass(frozen=True)
class Wanted:
    """What is to be analysed, and how.

    Attributes:
        checkpoint: a run's model/ folder, on a path or a URL.
        models: other models, as NAME=FOLDER.
        norms: None for those that the run's settings name.
        images, graphs: shards of captioned images and of scene graphs; None for those that the run was validated on.
        batch_size: images encoded at once.
        embedding: what a word's vector is.
        weighting: of the concepts that have a feature against those that do not, for its classifier.
        folds: of the classifiers' cross-validation.
        at_least: people who must have named a feature of a concept for it to have it.
        components: how many principal axes.
        fit_on: a file of words that the axes are fitted on, instead of the words of the categories.
        vocabulary: a file of words among which phrases look for theirs, instead of those of the categories.
    """

    checkpoint: str | None = None
    models: tuple[str, ...] = ()
    norms: Norms | None = None
    images: str | None = None
    graphs: str | None = None
    batch_size: int = BATCH_SIZE
    embedding: Options = IN_ISOLATION
    weighting: feature_norms.Weighting = "none"
    folds: int = 5
    at_least: float = 1
    components: int = 3
    fit_on: str | None = None
    vocabulary: str | None = None

    def resolved(self) -> Wanted:
        """The same with norms: those that were given, or else those of the run, as far as they are there."""
        if self.norms is not None or self.checkpoint is None:
            return replace(self, norms=self.norms or Norms())
        own = export.about(self.checkpoint).settings.get("analysis", {}).get("norms")
        try:
            return replace(self, norms=Norms.at(own) if own else Norms())
        except FileNotFoundError:
            return replace(self, norms=Norms(looked_for=f"in {own}, where the run had them (--norms DIR)"))

    def made_of(self) -> dict[str, str]:
        """Checksums of what the report follows from: of what an export tells of itself, and of the norms' files."""
        found = {"settings": _digest(repr(replace(self, checkpoint=None)).encode())}
        if self.checkpoint:
            found["checkpoint"] = _digest(Folder.at(self.checkpoint).read_bytes(export.ABOUT))
        return found | {place: _digest_of(place) for place in (self.norms or Norms()).places}


@dataclass(frozen=True)
class Plan:
    """An analysis whose data is there.

    Attributes:
        texts: whose vectors it needs.
        make: the analysis, given vectors of all of them.
    """

    texts: tuple[str, ...]
    make: Callable[[Lexicon], Analysis]


def _axes(wanted: Wanted) -> Plan:
    rows = _rows(wanted)
    if not np.isfinite(rows.concreteness).any():
        raise Missing(
            f"no concreteness of the categories' words {(wanted.norms or Norms()).looked_for}: give --concreteness FILE"
        )
    fit_on = read.read_words(wanted.fit_on) if wanted.fit_on else None

    def make(lexicon: Lexicon) -> Analysis:
        taken = lexicon.take(rows.word)
        other = lexicon.take(fit_on.words) if fit_on else None
        return axes.axes(
            taken.vectors,
            [rows.word[row] for row in taken.rows],
            [rows.category[row] for row in taken.rows],
            rows.concreteness[taken.rows],
            wanted.components,
            other.vectors if other else None,
            rows.left_out | taken.left_out,
        )

    return Plan((*rows.word, *(fit_on.words if fit_on else ())), make)


def _norms(wanted: Wanted) -> Plan:
    table = read.read_features(_place(wanted, "features", "features.csv"), wanted.at_least)

    def make(lexicon: Lexicon) -> Analysis:
        taken = lexicon.take(table.concepts)
        return feature_norms.norms(
            taken.vectors,
            [table.concepts[row] for row in taken.rows],
            table.features,
            table.has[taken.rows],
            table.types,
            wanted.folds,
            wanted.weighting,
            left_out=table.left_out | taken.left_out,
        )

    return Plan(table.concepts, make)


def _categories(wanted: Wanted) -> Plan:
    rows = read.read_categories(_place(wanted, "categories", CATEGORY_FILES))

    def make(lexicon: Lexicon) -> Analysis:
        taken = lexicon.take(rows.word)
        return categories.categories(
            taken.vectors,
            [rows.word[row] for row in taken.rows],
            [rows.category[row] for row in taken.rows],
            rows.left_out | taken.left_out,
        )

    return Plan(rows.word, make)


def _composition(wanted: Wanted) -> Plan:
    phrases, vocabulary = _phrases(wanted), _vocabulary(wanted)

    def make(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.take(phrases.phrase), lexicon.take(vocabulary)
        return composition.composition(
            own.vectors,
            words.vectors,
            [phrases.phrase[row] for row in own.rows],
            [phrases.target[row] for row in own.rows],
            [vocabulary[row] for row in words.rows],
            phrases.left_out | _told("phrases", own) | _told("words", words),
        )

    return Plan((*phrases.phrase, *vocabulary), make)


def _through_images(wanted: Wanted) -> Plan:
    phrases, vocabulary = _phrases(wanted), _vocabulary(wanted)
    checkpoint = _checkpoint(wanted)
    about = export.about(checkpoint)
    _trained(about, "grounding")
    settings = _settings(about, "grounding", wanted.batch_size)
    stage = settings.stage("grounding")
    shards = _shards(stage.val, wanted.images)

    def make(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.take(phrases.phrase), lexicon.take(vocabulary)
        kept = [vocabulary[row] for row in words.rows]
        exported = export.load(checkpoint, "grounding")
        S = similarities(
            exported.model,
            WordPieceTokenizer(exported.tokenizer.backend_tokenizer.to_str(), stage.max_tokens),
            [*(phrases.phrase[row] for row in own.rows), *kept],
            _batches(captioned_images(settings, stage, exported.tokenizer, shards, shuffle=False)),
            stage.similarity,
            stage.special_tokens,
        )
        model = _streams(about)["grounding"]
        return composition.composition(
            {model: S[: len(own.rows)]},
            {model: S[len(own.rows) :]},
            [phrases.phrase[row] for row in own.rows],
            [phrases.target[row] for row in own.rows],
            kept,
            phrases.left_out | _told("phrases", own) | _told("words", words),
            through_images=True,
        )

    return Plan((*phrases.phrase, *vocabulary), make)


def _phrases(wanted: Wanted) -> read.Phrases:
    """Phrases with their targets: those of the norms, or else the paper's."""
    place = (wanted.norms or Norms()).phrases
    if place:
        return read.read_phrases(place)
    pairs = list(published.PHRASES)
    return read.Phrases(tuple(phrase for phrase, _ in pairs), tuple(target for _, target in pairs))


def _vocabulary(wanted: Wanted) -> tuple[str, ...]:
    """The words that phrases are compared with, their targets among them."""
    if wanted.vocabulary:
        words = read.read_words(wanted.vocabulary).words
    else:
        words = read.read_categories(_place(wanted, "categories", f"{CATEGORY_FILES} for a vocabulary")).word
    return tuple(dict.fromkeys((*words, *_phrases(wanted).target)))


def _similarity(wanted: Wanted) -> Plan:
    _place(wanted, "pairs", "similarity/ with word pairs")
    sets = {name: read.read_pairs(file) for name, file in ((wanted.norms or Norms()).pairs or {}).items()}
    words = tuple(dict.fromkeys(word for one in sets.values() for word in (*one.first, *one.second)))

    def make(lexicon: Lexicon) -> Analysis:
        taken = lexicon.take(words)
        return similarity.similarity(
            taken.vectors,
            [words[row] for row in taken.rows],
            {name: list(zip(one.first, one.second, one.score.tolist(), strict=True)) for name, one in sets.items()},
            taken.left_out,
        )

    return Plan(words, make)


def _told(what: str, taken: Taken) -> dict[str, int]:
    """What a lexicon left out, of texts of this kind."""
    return {name.replace("words", what, 1): count for name, count in taken.left_out.items()}


def _place(wanted: Wanted, what: str, files: str) -> str:
    """Where norms of a kind are.

    Raises:
        Missing: nowhere.
    """
    there = wanted.norms or Norms()
    place: str | None = getattr(there, what)
    if place is None:
        raise Missing(f"no {files} {there.looked_for}: give --{what} FILE")
    return place


def _rows(wanted: Wanted) -> read.Categories:
    """Words by category; with the ratings of the norms, where there are any."""
    found = read.read_categories(_place(wanted, "categories", CATEGORY_FILES))
    ratings = (wanted.norms or Norms()).concreteness
    if ratings is None:
        return found
    rated = read.read_ratings(ratings)
    return replace(found.rated_by(rated), left_out=found.left_out | rated.left_out)


def retrieved(checkpoint: str, images: str | None, batch_size: int) -> dict[str, image_text_retrieval.Retrieval]:
    """Retrieval by stage, `grounding` and `retrieval`, as far as the model was trained in them.

    Args:
        images: shards of captioned images; None for those that the stage was validated on.

    Raises:
        ValueError: the model was trained in neither.
    """
    about = export.about(checkpoint)
    found = {}
    for name in _trained(about, "grounding", "retrieval"):
        exported = export.load(checkpoint, name)
        settings = _settings(about, name, batch_size)
        stage = settings.stage(name)
        batches = _batches(
            captioned_images(settings, stage, exported.tokenizer, _shards(stage.val, images), shuffle=False)
        )
        with torch.no_grad():
            found[name] = (
                image_text_retrieval.by_match_map(exported.model, batches, stage.similarity, stage.special_tokens)
                if name == "grounding"
                else image_text_retrieval.by_heads(exported.model, batches, stage.special_tokens)
            )
    return found


def related(checkpoint: str, graphs: str | None, batch_size: int) -> relations.Relations:
    """What the model finds in scene graphs.

    Args:
        graphs: shards; None for those that the relational stage was validated on.

    Raises:
        ValueError: the model was not trained in the relational stage.
    """
    about = export.about(checkpoint)
    _trained(about, "relational")
    exported = export.load(checkpoint, "relational")
    settings = _settings(about, "relational", batch_size)
    stage = settings.stage("relational")
    dataset = Dataset.open(_shards(stage.val, graphs), "scene_graphs")
    return relations.relations(
        exported.model,
        _batches(scene_graphs(settings, stage, exported.tokenizer, dataset, shuffle=False)),
        stage.special_tokens,
        taught=about.vocabulary["relational"],
        used=vocabulary_of(dataset),
    )


def _retrieval(wanted: Wanted) -> Plan:
    checkpoint = _checkpoint(wanted)
    about = export.about(checkpoint)
    for name in _trained(about, "grounding", "retrieval"):
        _shards(about.settings[name]["val"], wanted.images)

    def make(_: Lexicon) -> Analysis:
        return image_text_retrieval.analysis(retrieved(checkpoint, wanted.images, wanted.batch_size), _streams(about))

    return Plan((), make)


def _relations(wanted: Wanted) -> Plan:
    checkpoint = _checkpoint(wanted)
    about = export.about(checkpoint)
    _trained(about, "relational")
    _shards(about.settings["relational"]["val"], wanted.graphs)

    def make(_: Lexicon) -> Analysis:
        return relations.analysis(related(checkpoint, wanted.graphs, wanted.batch_size), _streams(about)["relational"])

    return Plan((), make)


ANALYSES: dict[str, Callable[[Wanted], Plan]] = {
    "axes": _axes,
    "norms": _norms,
    "categories": _categories,
    "composition": _composition,
    THROUGH_IMAGES: _through_images,
    "similarity": _similarity,
    "retrieval": _retrieval,
    "relations": _relations,
}


def _checkpoint(wanted: Wanted) -> str:
    if wanted.checkpoint is None:
        raise Missing("it is of a whole model: give --checkpoint DIR")
    return wanted.checkpoint


def _trained(about: About, *names: str) -> list[str]:
    """Those of some stages that a model was trained in.

    Raises:
        Missing: in none of them.
    """
    stages = [stage.name for stage in about.stages]
    if not set(names) & set(stages):
        wanted = f"{'neither' if len(names) > 1 else 'no'} stage {' nor '.join(names)}"
        raise Missing(f"the model has {wanted}: it was trained in {', '.join(stages)}")
    return [name for name in stages if name in names]


def _streams(about: About) -> dict[str, str]:
    """The name of each stage's language stream."""
    return {stage.name: stage.language.removeprefix(f"{export.LANGUAGE}-") for stage in about.stages}


def _shards(own: str, given: str | None) -> str:
    """Shards to look at: those that were given, or the run's own.

    Raises:
        Missing: the run's own are not there.
    """
    if given is None and not Folder.at(own).exists(INDEX):
        raise Missing(f"the shards that the run was validated on are not at {own}")
    return given or own


def _settings(about: About, stage: str, batch_size: int) -> Settings:
    """The settings that a model was trained with, for reading data in batches of this size, in one piece."""
    if batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {batch_size}")
    tree = copy.deepcopy(about.settings)
    tree["scaling"] |= {"num_workers": 0, "chunks": 1}
    tree[stage]["batch_size"] = batch_size
    return Settings(**tree)


def _batches(source: Source) -> Iterator[Any]:
    return (batch for step in stream(source, Cursor(), epochs=1) for _, batch in step.chunks)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(place: str) -> str:
    """Of a file, or of the files of a folder with their names."""
    folder = Folder.at(place)
    if folder.filesystem.get_file_info(folder.path).is_file:
        return _digest(folder.parent.read_bytes(folder.name))
    return _digest(b"".join(name.encode() + folder.read_bytes(name) for name in folder.names()))
