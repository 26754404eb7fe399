"""Image-text retrieval of a model, in both directions: recall@k and ranks.

By the published protocol (Karpathy and Fei-Fei 2015; VSE++, Faghri et al. 2018; CLIP, Radford et al. 2021), each
caption is a query for its image, and an image is a query for any of its captions, of which the first five count. Large
sets are also measured in folds of 1,000 images, in the data set's order, whose figures are averaged. Validation during
training takes an image's first caption alone; where images have several, both are given, and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from groundray.analysis.inputs.caption_pool import Pool
from groundray.analysis.measures.proportion import proportion_of
from groundray.analysis.measures.statistics import FEWEST, Estimate, draws, measure, paired_tests
from groundray.analysis.result import Analysis, Measure, Table, Value
from groundray.stage.metrics import TOP_K, MatchedRanks, recalls

Protocol = Literal["published", "first-caption"]
FOLD = 1000  # images
WAYS = {"text_to_image": "caption to image", "image_to_text": "image to caption"}
RSUM = "rsum"


@dataclass(frozen=True)
class Folds:
    """Figures of parts of the images, each a pool of its own, averaged.

    Attributes:
        count, images: number of folds, and of images of each.
        left_out: number of images after the last fold.
    """

    count: int
    images: int
    left_out: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Retrieval:
    """Recall@k, mean and median rank in both directions.

    Attributes:
        images, captions: number of images in the pool, and of the captions that are used.
        metrics: `text_to_image/recall@1` and so on, of each image's first caption alone: fractions from 0 to 1, and
            ranks from 1.
        chance: recall@10 of random ranks, of first captions.
        how: what images and captions are compared by.
        published: the same by the published protocol, and `rsum`, the sum of the six recalls in percent; the median
            rank is rounded down, as there. Empty if the first captions alone were measured.
        intervals: 95% interval of each recall and of `rsum`, resampled over images with all their captions.
        random: figures of random ranks, by the published protocol.
        folds: None for less than two folds.
        left_out: counts of what is not used.
        shards: the data set.
        ranks: of the published protocol, else of first captions.
        image_of: image of each caption of the ranks.
    """

    images: int
    captions: int
    metrics: dict[str, float]
    chance: float
    how: str
    published: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    random: dict[str, float] = field(default_factory=dict)
    folds: Folds | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    shards: str = ""
    ranks: MatchedRanks | None = field(default=None, repr=False, compare=False)
    image_of: Int[np.ndarray, " caption"] | None = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the figures, without the ranks and the place of the shards."""
        left = ("ranks", "image_of", "folds", "shards")
        tree = {name: value for name, value in vars(self).items() if name not in left}
        return {**tree, "folds": vars(self.folds) if self.folds else None}


def retrieval(pool: Pool, protocol: Protocol = "published", shards: str = "", fold: int = FOLD) -> Retrieval:
    """Measure retrieval over all images of a pool.

    Args:
        protocol: `published` measures first captions alone too.
        fold: number of images of a fold.
    """
    first = pool.ranks(first=True)
    several = len(pool.image_of) > pool.images
    found = Retrieval(
        images=pool.images,
        captions=len(pool.image_of),
        metrics=recalls(first),
        chance=min(1.0, 10 / pool.images),
        how=pool.how,
        shards=shards,
        ranks=first,
        image_of=pool.image_of,
    )
    if protocol == "first-caption":
        return found
    ranks = pool.ranks() if several else first
    values = {name: one.with_interval() for name, one in _estimates(ranks, pool.image_of).items()}
    return replace(
        found,
        published=published(ranks),
        intervals={name: (value.low, value.high) for name, value in values.items() if value.low is not None},
        random=random_ranks(np.bincount(pool.image_of)),
        folds=_folds(pool, fold, several),
        left_out=pool.left_out,
        ranks=ranks,
    )


def published(ranks: MatchedRanks) -> dict[str, float]:
    """Return the figures of ranks as they are published: median ranks are rounded down, and `rsum` is the sum of
    recall@1, @5 and @10 in both directions, in percent (0 to 600)."""
    metrics = recalls(ranks)
    for way in WAYS:
        metrics[f"{way}/median_rank"] = float(np.floor(metrics[f"{way}/median_rank"]))
    return {**metrics, RSUM: 100 * sum(metrics[name] for name in _recall_names())}


def _recall_names() -> list[str]:
    return [f"{way}/recall@{k}" for way in WAYS for k in TOP_K]


def _folds(pool: Pool, size: int, several: bool) -> Folds | None:
    count = pool.images // size
    if count < 2:
        return None
    parts = [
        published(pool.ranks(slice(start, start + size), first=not several)) for start in range(0, count * size, size)
    ]
    metrics = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
    return Folds(count, size, pool.images - count * size, metrics)


def random_ranks(captions: Int[np.ndarray, " image"]) -> dict[str, float]:
    """Return the expected recalls of random orders, by the published protocol.

    Args:
        captions: number of captions of each image.
    """
    images, total = len(captions), int(captions.sum())
    metrics = {}
    for k in TOP_K:
        metrics[f"text_to_image/recall@{k}"] = min(1.0, k / images)
        none = hypergeom.pmf(0, total, captions, min(k, total))  # of an image's captions among the first k
        metrics[f"image_to_text/recall@{k}"] = float(np.mean(1 - none))
    return {**metrics, RSUM: 100 * sum(metrics.values())}


def _hits(ranks: MatchedRanks, image_of: Int[np.ndarray, " caption"], name: str) -> Float[np.ndarray, "image 2"]:
    """Return, for each image, how many of its queries have a rank of at most k, and how many queries it has."""
    way, _, k = name.partition("/recall@")
    if way == "image_to_text":
        hits = (ranks.image_to_text.numpy() <= int(k)).astype(np.float64)
        return np.stack([hits, np.ones(len(hits))], axis=1)
    own = (ranks.text_to_image.numpy() <= int(k)).astype(np.float64)
    return np.stack([np.bincount(image_of, own), np.bincount(image_of)], axis=1)


def _estimates(ranks: MatchedRanks, image_of: Int[np.ndarray, " caption"]) -> dict[str, Estimate]:
    """Return each recall and `rsum`, with resamples over images: the captions of an image are not independent."""
    tables = {name: _hits(ranks, image_of, name) for name in _recall_names()}
    images = len(next(iter(tables.values())))
    resampled: dict[str, list[Float[np.ndarray, " resample"]]] = {name: [np.empty(0)] for name in tables}
    for drawn in draws(images) if images >= FEWEST else ():
        for name, table in tables.items():
            hits, queries = (table[:, column][drawn].sum(axis=1) for column in (0, 1))
            resampled[name].append(hits / queries)
    found = {}
    for name, table in tables.items():
        hits, queries = table.sum(axis=0)
        influence = (table[:, 0] - hits / queries * table[:, 1]) / queries
        found[name] = Estimate(float(hits / queries), np.concatenate(resampled[name]), influence)
    return {**found, RSUM: _percent(found.values())}


def _percent(recalls_found: Iterable[Estimate]) -> Estimate:
    """Return the sum of estimates of the same items, in percent."""
    parts = list(recalls_found)
    return Estimate(
        100 * sum(one.value for one in parts),
        100 * np.sum([one.resampled for one in parts], axis=0),
        100 * np.sum([one.influence for one in parts], axis=0),
    )


def analysis(found: Mapping[str, Retrieval], labels: Mapping[str, str]) -> Analysis:
    """Return the results as an analysis.

    Args:
        found: results by stage, `grounding` or `retrieval`, or by the name of another model.
        labels: the name of each in tables, such as that of the stage's language stream.
    """
    first = tuple(
        Measure(
            key=f"{name}/{way}/recall_at_10",
            name=f"{WAYS[way]}, {one.how}, first captions: recall@10",
            items=one.images,
            values={labels[name]: proportion_of(one.metrics[f"{way}/recall@10"], one.images)},
        )
        for name, one in found.items()
        for way in WAYS
    )
    left_out: dict[str, int] = {}
    for one in found.values():
        left_out |= one.left_out
    return Analysis(
        "retrieval",
        "How well a caption finds its image among all images, and an image its captions. Published protocol: every "
        "caption is a query, and any of an image's first five captions counts (Karpathy and Fei-Fei 2015); intervals "
        "are over images with all their captions. First captions, as in validation: an image's first caption is its "
        "only one; intervals are Wilson's (1927), over queries.",
        (*first, *_published_measures(found, labels)),
        tuple(tables(found, labels)),
        left_out=left_out,
    )


def _published_measures(found: Mapping[str, Retrieval], labels: Mapping[str, str]) -> Iterator[Measure]:
    """Yield a measure for each figure of the published protocol, with differences between systems on equal shards."""
    whole = {name: one for name, one in found.items() if one.published}
    if not whole:
        return
    images = min(one.images for one in whole.values())
    estimates = {name: _estimates(*_ranks(one)) for name, one in whole.items()}
    titles = {name: f"{WAYS[name.partition('/')[0]]}: {name.partition('/')[2]}" for name in _recall_names()}
    for figure, title in {**titles, RSUM: "sum of recalls (rSum, 0 to 600)"}.items():
        parts = []
        for names in _by_shards(whole).values():
            shares = {} if figure == RSUM else {labels[name]: _shares(whole[name], figure) for name in names}
            tests = paired_tests(shares) if shares else None
            parts.append(measure("", "", 0, {labels[name]: estimates[name][figure] for name in names}, tests))
        yield Measure(
            f"published/{figure.replace('@', '_at_')}",
            f"{title}, any of five captions",
            images,
            {label: value for part in parts for label, value in part.values.items()},
            tuple(difference for part in parts for difference in part.differences),
        )
    for way, title in WAYS.items():
        values = {labels[name]: Value(one.published[f"{way}/median_rank"]) for name, one in whole.items()}
        yield Measure(f"published/{way}/median_rank", f"{title}: median rank, any of five captions", images, values)


def _ranks(found: Retrieval) -> tuple[MatchedRanks, Int[np.ndarray, " caption"]]:
    assert found.ranks is not None
    assert found.image_of is not None
    return found.ranks, found.image_of


def _shares(found: Retrieval, figure: str) -> Float[np.ndarray, " image"]:
    """Return the share of each image's queries that count as found."""
    hits, queries = _hits(*_ranks(found), figure).T
    return hits / queries


def _by_shards(found: Mapping[str, Retrieval]) -> dict[str, list[str]]:
    """Return the names of the systems that were measured on each data set."""
    groups: dict[str, list[str]] = {}
    for name, one in found.items():
        groups.setdefault(one.shards, []).append(name)
    return groups


def tables(found: Mapping[str, Retrieval], labels: Mapping[str, str]) -> Iterator[Table]:
    """Yield a table for each protocol and data set: a row for each system, and one of random ranks."""
    columns = ("", *(f"{short} {name}" for short in ("C→I", "I→C") for name in ("@1", "@5", "@10", "med")), "rSum")

    def row(title: str, metrics: Mapping[str, float]) -> tuple[Any, ...]:
        cells: list[float | None] = []
        for way in WAYS:
            cells += [metrics.get(f"{way}/recall@{k}") for k in TOP_K]
            cells.append(metrics.get(f"{way}/median_rank"))
        total = metrics.get(RSUM, 100 * sum(metrics.get(name, 0.0) for name in _recall_names()))
        return (title, *cells, total)

    def titles(names: Iterable[str]) -> dict[str, str]:
        return {name: f"{labels[name]}, {found[name].how}" for name in names}

    for names in _by_shards(found).values():
        one = found[names[0]]
        size = f"among {one.images:,} images"
        if one.published:
            rows = [row(title, found[name].published) for name, title in titles(names).items()]
            captions = f"{size} and {one.captions:,} captions"
            same = ", of which each image has one" if one.captions == one.images else ", any of five counts"
            yield Table(f"Retrieval {captions}{same}", columns, (*rows, row("random ranks", one.random)))
        if one.folds:
            rest = f", {one.folds.left_out:,} images left out" if one.folds.left_out else ""
            title = f"Retrieval, mean of {one.folds.count} folds of {one.folds.images:,} images{rest}"
            folded = [(title, folds) for name, title in titles(names).items() if (folds := found[name].folds)]
            yield Table(title, columns, tuple(row(label, folds.metrics) for label, folds in folded))
        if not one.published or one.captions > one.images:
            rows = [row(title, found[name].metrics) for name, title in titles(names).items()]
            chance = random_ranks(np.ones(one.images, dtype=np.int64))
            title = f"Retrieval {size}, each with its first caption alone"
            yield Table(title, columns, (*rows, row("random ranks", chance)))
