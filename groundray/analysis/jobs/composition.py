"""Ranks of the words that phrases stand for: by vectors, and through images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from groundray.analysis.exported import batches_of, choose_shards, language_streams, reading_settings, trained_stages
from groundray.analysis.inputs import norm_tables as read
from groundray.analysis.inputs import published
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.delimited import Source
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs.job import CATEGORY_FILES, AnalysisJob, checkpoint_of, job_of, of_kind, path_of
from groundray.analysis.measures import composition as measures
from groundray.analysis.measures.image_grounded_similarity import WordsThroughImages, similarities, texts_at_once
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis
from groundray.data.schema import Dataset
from groundray.data.tokenization import WordPieceTokenizer
from groundray.model import export
from groundray.model.heads import GroundingHeads
from groundray.stage.contrastive import captioned_images


def job(request: AnalysisRequest) -> AnalysisJob:
    phrases = _phrases(request)
    vocabulary, source = _vocabulary(request)

    def run(lexicon: Lexicon) -> Analysis:
        own, words = lexicon.select(phrases.phrase), lexicon.select(vocabulary)
        return measures.composition(
            own.vectors,
            words.vectors,
            [phrases.phrase[row] for row in own.rows],
            [phrases.target[row] for row in own.rows],
            [vocabulary[row] for row in words.rows],
            phrases.left_out | of_kind("phrases", own) | of_kind("words", words),
        )

    return job_of((*phrases.phrase, *vocabulary), run, phrases.source, source)


def through_images(request: AnalysisRequest) -> AnalysisJob:
    phrases = _phrases(request)
    vocabulary, source = _vocabulary(request)
    checkpoint = checkpoint_of(request)
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
        return measures.composition(
            {model: through_images.of_phrases},
            {model: through_images},
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
