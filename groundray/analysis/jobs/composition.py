"""Ranks of the words that phrases stand for: by vectors, and through images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from groundray.analysis.exported import (
    Missing,
    batches_of,
    choose_shards,
    language_streams,
    reading_settings,
    trained_stages,
)
from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs import published
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.delimited import Source
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.thumbnails import thumbnails
from groundray.analysis.jobs.job import CATEGORY_FILES, AnalysisJob, checkpoint_of, job_of, of_kind, path_of
from groundray.analysis.measures import composition as measures
from groundray.analysis.measures.image_grounded_similarity import (
    Similarities,
    WordsThroughImages,
    similarities,
    texts_at_once,
)
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.config import Settings
from groundray.config.settings import Grounding
from groundray.data.schema import Dataset
from groundray.data.tokenization import WordPieceTokenizer
from groundray.model import export
from groundray.model.heads import GroundingHeads
from groundray.stage.contrastive import captioned_images

IMAGES = 5  # small pictures of a phrase


@dataclass(frozen=True)
class _Pool:
    """The captioned images through which a grounded model compares texts.

    Attributes:
        model: name of the model's language stream.
    """

    checkpoint: str
    model: str
    settings: Settings
    stage: Grounding
    shards: str

    @staticmethod
    def of(request: AnalysisRequest) -> _Pool:
        """Return the images of a request, or else the run's own.

        Raises:
            Missing: there is no checkpoint, it was not grounded, or the run's own images do not exist.
        """
        checkpoint = checkpoint_of(request)
        about = export.about(checkpoint)
        trained_stages(about, "grounding")
        settings = reading_settings(about, "grounding", request.batch_size)
        stage = settings.stage("grounding")
        assert isinstance(stage, Grounding)
        model = language_streams(about)["grounding"]
        return _Pool(checkpoint, model, settings, stage, choose_shards(stage.val, request.images))

    @property
    def images(self) -> Dataset:
        """Return the data set of the images."""
        return Dataset.open(self.shards, "captions")

    def similarities(self) -> tuple[Similarities, int]:
        """Return a function that returns the similarity of some texts to each image, in the order of the data set; and
        how many texts it may take at once."""
        exported = export.load(self.checkpoint, "grounding")

        def similarities_of(texts: Sequence[str]) -> Float[np.ndarray, "text image"]:
            return similarities(
                exported.model,
                WordPieceTokenizer.of(exported.tokenizer, self.stage.max_tokens),
                texts,
                batches_of(captioned_images(self.settings, self.stage, exported.tokenizer, self.shards, shuffle=False)),
                self.stage.similarity,
                self.stage.special_tokens,
                self.stage.alignment,
            )

        return similarities_of, texts_at_once(
            self.images.rows, exported.model.head(GroundingHeads).language.out_features
        )

    def nearest(self, texts: Sequence[str]) -> dict[str, tuple[bytes, ...]]:
        """Return small pictures of the images that are most similar to each text, nearest first."""
        similarities_of, at_once = self.similarities()
        found: dict[str, tuple[bytes, ...]] = {}
        for start in range(0, len(texts), at_once):
            some = texts[start : start + at_once]
            rows = np.argsort(-similarities_of(some), axis=1, kind="stable")[:, :IMAGES]
            small = thumbnails(self.images, rows.ravel().tolist())
            for place, text in enumerate(some):
                found[text] = tuple(small[place * rows.shape[1] : (place + 1) * rows.shape[1]])
        return found


def job(request: AnalysisRequest) -> AnalysisJob:
    phrases = _phrases(request)
    vocabulary, source = _vocabulary(request)
    pool = _given_pool(request)

    def run(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.select(phrases.phrase), lexicon.select(vocabulary)
        known = [phrases.phrase[row] for row in own.rows]
        pictured = (
            list(dict.fromkeys(known))[: measures.PICTURED] if measures.before_and_after(list(own.vectors)) else []
        )
        return measures.composition(
            own.vectors,
            words.vectors,
            known,
            [phrases.target[row] for row in own.rows],
            [vocabulary[row] for row in words.rows],
            phrases.left_out | of_kind("phrases", own) | of_kind("words", words),
            images=pool.nearest(pictured) if pool and pictured else None,
        )

    return job_of((*phrases.phrase, *vocabulary), run, phrases.source, source)


def _given_pool(request: AnalysisRequest) -> _Pool | None:
    """Return the images that a request names, for a grounded model; None without: `through_images` says why."""
    try:
        return _Pool.of(request) if request.images else None
    except Missing:
        return None


def through_images(request: AnalysisRequest) -> AnalysisJob:
    phrases = _phrases(request)
    vocabulary, source = _vocabulary(request)
    pool = _Pool.of(request)

    def run(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.select(phrases.phrase), lexicon.select(vocabulary)
        kept = [vocabulary[row] for row in words.rows]
        similarities_of, at_once = pool.similarities()
        through_images = WordsThroughImages(similarities_of, [phrases.phrase[row] for row in own.rows], kept, at_once)
        return measures.composition(
            {pool.model: through_images.of_phrases},
            {pool.model: through_images},
            [phrases.phrase[row] for row in own.rows],
            [phrases.target[row] for row in own.rows],
            kept,
            phrases.left_out | of_kind("phrases", own) | of_kind("words", words),
            through_images=True,
        )

    return job_of((*phrases.phrase, *vocabulary), run, phrases.source, source)


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
        table = read.read_categories(path_of(request, "categories", f"{CATEGORY_FILES} for a vocabulary"))
        words, source = table.word, table.source
    return tuple(dict.fromkeys((*words, *_phrases(request).target))), source
