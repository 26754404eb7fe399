"""Ranks the images that vectors found once more, by the match map: late interaction of positions with words, and with
the positions of a picture.

    S(text, c)  = mean_t max_l V_c[l] . W[t]               over the words of the text and the positions of image c
    S(image, c) = sum_p weight_p max_l V_c[l] . V[p]       over the salient positions of the picture

A vector says what an image shows on the whole, its best position whether it shows one thing. Both count, each in
standard deviations above the mean of the pool, z(x) = (x - mean) / sd over a fixed sample of its images:

    T(c) = (z(cos(Q_text, c)) + 2 z(S(text, c))) / 3
    I(c) = (z(cos(Q_image, c)) + 2 z(S(image, c))) / 3
    D(c) = (z(cos(Q_names, c)) + 2 z(S(names, c))) / 3
    match(c) = (1 - alpha) ((1 - n) I(c) + n D(c)) + alpha T(c)  [ - WITHOUT T_without(c) ],  n = NAMED min(1, 2 alpha)

so that a mix weighs picture and text alike in any model: their cosines spread differently. S(text, c) is the similarity
of the grounding stage without special tokens. A position is salient if it differs from the mean position of the pool,
as background does not.

Beside a text, a picture means more and more what it shows, whatever its colours: D is the score of the picture's
description, of those of the model's object classes (names of the stage relational) that match it best, for which it is
searched as for a text. A picture alone is compared by its looks, and a model without classes has n = 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64

from groundray.image_search.explain import Matcher, WordFeatures
from groundray.image_search.index import Index
from groundray.image_search.positions import Positions, Quantised
from groundray.image_search.query_vector import finite, unit
from groundray.image_search.towers import Towers

BLOCK_VALUES = 2**18  # of float32 that are multiplied at once: 1 MB
ROWS = 4  # a product has a multiple of it, with which no image's matches depend on which others are multiplied
BLOCK_IMAGES = 1024  # whose features are in memory at once: 20 MB at 49 positions of width 384
# weight of the match beside the cosine: at .5 / .67, recall@10 of 200 photos .765 / .765, and mixes of 2,000
# scenes, on which it was chosen, both found in .61 / .64
MATCH = 2 / 3
SAMPLE = 128  # images of the pool: a standard deviation to 6%
SALIENT, SHARPNESS = 8, 4  # positions of a picture that count, and the exponent of their salience
# classes that describe a picture, the exponent of their scores, and the description's weight beside the looks at an
# alpha of .5 or more: mixes of 2,000 scenes, on which they were chosen, both found in .57 / .70 without and with it;
# with an exponent of 4 .69, with a weight of 2/3 .70
DESCRIBING, CLEARNESS, NAMED = 4, 8, 5 / 6
Vector = Float32[np.ndarray, " dim"]


class Ranked(NamedTuple):
    """Images in the order of their ranks: rows, cosines with the query, and the matches of the first of them."""

    rows: Int64[np.ndarray, " image"]
    cosines: Float32[np.ndarray, " image"]
    matches: Float32[np.ndarray, " reranked"]

    @staticmethod
    def of(cosines: Float32[np.ndarray, " k"], rows: Int64[np.ndarray, " k"]) -> Ranked:
        """Return nearest neighbours. An inverted file may find fewer than asked for: rows of -1 are left out."""
        found = rows >= 0
        return Ranked(rows[found], cosines[found], np.empty(0, np.float32))

    def reordered(self, matches: Float32[np.ndarray, " reranked"]) -> Ranked:
        """Return the images with the first of them in the order of their matches; equal ones keep their order."""
        count = len(matches)
        order = np.argsort(-matches, kind="stable")
        rows, cosines = (np.concatenate([all[:count][order], all[count:]]) for all in (self.rows, self.cosines))
        return Ranked(rows, cosines, matches[order])

    def between(self, first: int, stop: int) -> Iterator[tuple[int, float, float | None]]:
        """Yield row, cosine and match of the images of ranks `first` + 1 to `stop`."""
        shown = slice(first, stop)
        yield from zip_longest(self.rows[shown].tolist(), self.cosines[shown].tolist(), self.matches[shown].tolist())


@dataclass(frozen=True)
class Part:
    """A picture or a text as a part of a query: its vector, and what positions of images are compared with.

    Attributes:
        features: of a picture's salient positions, or of a text's words.
        weights: of these, with sum 1.
    """

    vector: Vector
    features: Float32[np.ndarray, "feature dim"]
    weights: Float32[np.ndarray, " feature"]


@dataclass(frozen=True)
class Names:
    """The names of object classes as texts, with which pictures are described.

    Attributes:
        vectors: of each name.
        features: of the words of all names.
        weights: of these in each name, with sum 1.
        cosines, matches: with the sampled images of the pool.
    """

    vectors: Float32[np.ndarray, "name dim"]
    features: Float32[np.ndarray, "word position_dim"]
    weights: Float32[np.ndarray, "name word"]
    cosines: Float32[np.ndarray, "sample name"]
    matches: Float32[np.ndarray, "sample name"]

    @staticmethod
    def of(
        names: Sequence[str],
        matcher: Matcher,
        towers: Towers,
        sampled: Quantised,
        vectors: Float32[np.ndarray, "sample dim"],
    ) -> Names | None:
        """Return the names as texts; None if there are none.

        Args:
            sampled, vectors: position features and vectors of the sampled images.
        """
        if not names:
            return None
        words = [each.features for each in matcher.word_features_of(names)]
        weights = np.zeros((len(names), sum(map(len, words))), np.float32)
        start = 0
        for row, own in zip(weights, words, strict=True):
            row[start : start + len(own)] = 1 / len(own)
            start += len(own)
        of_names, features = towers.embed_texts(names), np.concatenate(words)
        (best,) = best_matches(sampled, features)
        return Names(of_names, features, weights, vectors @ of_names.T, best @ weights.T)


@dataclass(frozen=True)
class Reranker:
    """Scores images of a pool by the match map.

    Attributes:
        names: with which a picture beside a text is described; None if the model has no object classes.
        sample: rows of the images by whose mean and standard deviation scores are measured. Images that were removed
            from the pool are among them, so that the scores of the others stay.
        sampled: their position features.
        sampled_vectors: their vectors.
        mean_position: mean of these.
    """

    matcher: Matcher
    index: Index
    positions: Positions
    sample: Int64[np.ndarray, " row"]
    sampled: Quantised
    sampled_vectors: Float32[np.ndarray, "row dim"]
    mean_position: Vector
    names: Names | None = None

    @staticmethod
    def of(matcher: Matcher, index: Index, positions: Positions, towers: Towers) -> Reranker:
        """Return the reranker of a pool, given its position features."""
        count = len(index.ids)
        sample = np.random.default_rng(0).choice(count, min(SAMPLE, count), replace=False)
        sampled = positions[sample]
        mean, vectors = sampled.float32().mean(axis=(0, 1)), index.vectors_of(sample)
        names = Names.of(matcher.classes, matcher, towers, sampled, vectors)
        return Reranker(matcher, index, positions, sample, sampled, vectors, mean, names)

    def text_part(self, texts: Sequence[WordFeatures], vector: Vector) -> Part:
        """Return some texts, each of which counts alike, as a part of a query, given the words of each."""
        words = [text.features for text in texts]
        weights = np.concatenate([np.full(len(some), 1 / (len(some) * len(words)), np.float32) for some in words])
        return Part(vector, np.concatenate(words), weights)

    def image_part(
        self, vector: Vector, features: Float32[np.ndarray, "position dim"] | None, row: int | None = None
    ) -> Part:
        """Return a picture as a part of a query.

        Args:
            features: of its positions; None for an image of the pool.
            row: of the image in the pool.
        """
        own = self._own(features, row)
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(self.mean_position)
        salience = 1 - own @ self.mean_position / np.maximum(lengths, 1e-12)
        chosen = np.argsort(-salience, kind="stable")[:SALIENT]
        weights = np.maximum(salience[chosen], 1e-6) ** SHARPNESS
        return Part(vector, own[chosen], (weights / weights.sum()).astype(np.float32))

    def description(
        self, vector: Vector, features: Float32[np.ndarray, "position dim"] | None, row: int | None = None
    ) -> Part | None:
        """Return what a picture shows, as a text of the object classes that match it best; None without classes.
        Arguments as of `image_part`."""
        names = self.names
        if names is None:
            return None
        own = (self._own(features, row) @ names.features.T).max(axis=0) @ names.weights.T
        scores = _weighed(standardised(names.vectors @ vector, names.cosines), standardised(own, names.matches))
        shares = np.zeros(len(scores), np.float32)
        chosen = np.argsort(-scores, kind="stable")[:DESCRIBING]
        clear = np.maximum(scores[chosen], 1e-6)
        shares[chosen] = (clear / clear.max()) ** CLEARNESS  # without underflow, also where no class matches
        shares /= shares.sum()
        weights = shares @ names.weights
        said = weights > 0
        return Part(unit(shares @ names.vectors), names.features[said], weights[said])

    def _own(self, features: Float32[np.ndarray, "position dim"] | None, row: int | None) -> np.ndarray:
        """Return the position features of a picture, given or of the pool."""
        if features is not None:
            return features
        assert row is not None
        return self.positions[np.array([row])].float32()[0]

    def rank(
        self,
        nearest: Sequence[Ranked],
        alphas: Sequence[float],
        count: int,
        image: Part | None,
        text: Part | None,
        without: Part | None = None,
        weight: float = 0.0,
        description: Part | None = None,
    ) -> list[Ranked]:
        """Return the images found at each alpha, the first `count` of them in the order of their match. All are scored
        in one pass, each once.

        Args:
            nearest: the images found at each alpha.
            weight: of the text to leave out.
            description: of the image, beside a text.
        """
        parts = (image, text, without, description)
        given = [part for part in parts if part is not None]
        rows = np.unique(np.concatenate([found.rows[:count] for found in nearest]))
        if not len(rows):
            return list(nearest)
        scores = iter(finite(self.scores(given, rows), "match maps"))
        of_image, of_text, left_out, described = (None if part is None else next(scores) for part in parts)
        again = []
        for alpha, found in zip(alphas, nearest, strict=True):
            shown = of_image if described is None else mix_scores(of_image, described, NAMED * min(1.0, 2 * alpha))
            match = mix_scores(shown, of_text, alpha)
            match = match if left_out is None else match - np.float32(weight) * left_out
            again.append(found.reordered(match[np.searchsorted(rows, found.rows[:count])]))
        return again

    def scores(self, parts: Sequence[Part], rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "part row"]:
        """Return the score of each image for each part of a query, in standard deviations above the pool's mean."""
        of_sample = list(_measured(parts, self.sampled_vectors, self.sampled))
        scores = np.empty((len(parts), len(rows)), np.float32)
        for start in range(0, len(rows), BLOCK_IMAGES):  # a mix at many alphas may have found tens of thousands
            some = rows[start : start + BLOCK_IMAGES]
            found = _measured(parts, self.index.vectors_of(some), self.positions[some])
            for part, (own, usual) in enumerate(zip(found, of_sample, strict=True)):
                cosine, match = map(standardised, own, usual)
                scores[part, start : start + len(some)] = _weighed(cosine, match)
        return scores


def _measured(
    parts: Sequence[Part], vectors: Float32[np.ndarray, "image dim"], images: Quantised
) -> Iterator[tuple[Float32[np.ndarray, " image"], Float32[np.ndarray, " image"]]]:
    """Yield the cosine and the match of each image with each part."""
    for part, best in zip(parts, best_matches(images, *(part.features for part in parts)), strict=True):
        yield vectors @ part.vector, best @ part.weights


def best_matches(
    images: Quantised, *features: Float32[np.ndarray, "_ dim"], block_values: int = BLOCK_VALUES
) -> list[Float32[np.ndarray, "image _"]]:
    """Return the best match of each feature over the positions of each image, as products of a block of images.

    Args:
        features: of one part of a query after the other, each with a product of its own: its matches have the same bits
            whatever the others are.
        block_values: maximum number of values that are converted at once; an image may have more.

    The features are the rows of a product and the positions its columns, so that the best of an image's are found along
    a row. That takes .6 of the time of the other order for the parts of a mix, positions of width 128 or 384.
    """
    count, positions, width = images.values.shape
    step = max(1, min(count, block_values // (positions * width)))
    factors = [F.pad(torch.from_numpy(some), (0, 0, 0, -len(some) % ROWS)) for some in features]
    best, converted = [torch.empty(len(factor), count) for factor in factors], torch.empty(step, positions, width)
    for start in range(0, count, step):
        part = slice(start, min(count, start + step))
        values, scales = torch.from_numpy(images.values[part]), torch.from_numpy(images.scales[part])
        columns = converted[: len(values)].copy_(values).flatten(0, 1).T
        for own, factor in zip(best, factors, strict=True):
            own[:, part] = (factor @ columns).unflatten(1, (-1, positions)).mul_(scales).amax(dim=2)
    return [own[: len(some)].T.contiguous().numpy() for own, some in zip(best, features, strict=True)]


def standardised(
    scores: Float32[np.ndarray, " row"], of_sample: Float32[np.ndarray, " sample"] | Float32[np.ndarray, "sample row"]
) -> Float32[np.ndarray, " row"]:
    """Return scores in standard deviations above the mean of a sample's, the same for all or one for each."""
    return (scores - of_sample.mean(axis=0)) / np.maximum(of_sample.std(axis=0), np.float32(1e-6))


def _weighed(cosines: Float32[np.ndarray, " row"], matches: Float32[np.ndarray, " row"]) -> Float32[np.ndarray, " row"]:
    """Return the weighted mean of both, in standard deviations."""
    return np.float32(1 - MATCH) * cosines + np.float32(MATCH) * matches


def mix_scores(
    image: Float32[np.ndarray, " row"] | None, text: Float32[np.ndarray, " row"] | None, alpha: float
) -> Float32[np.ndarray, " row"]:
    """Return (1 - alpha) I + alpha T: at alpha 0 exactly the picture's scores, at 1 the text's. If one of them is None,
    it is the other."""
    if image is None or text is None:
        scores = text if image is None else image
        assert scores is not None
        return scores
    return np.float32(1 - alpha) * image + np.float32(alpha) * text
