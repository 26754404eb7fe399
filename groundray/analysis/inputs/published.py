"""The paper's published figures, shown beside measured ones.

Source: Zhang, Choi, Han and Liu, "Explainable Semantic Space by Grounding Language to Vision with Cross-Modal
Contrastive Learning" (NeurIPS 2021), its slides and the authors' repository. The numbers are for the paper's own word
sets: 8,189 rated rows of 100 SemCat categories (13 of them twice), the CSLB norms, and a vocabulary that is not named
and seems to be SemCat's 6,238 words. Medians of F1 and quartiles of silhouettes were read off figures, within 0.002,
and are `ReadOff`; all others are printed. A phrase's own words are ranked like all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from groundray.analysis.result import ReadOff

MODELS = ("ungrounded", "grounded", "relational")

# figures of each model, by analysis and measure
_PRINTED: dict[str, dict[str, tuple[float, float, float]]] = {
    "axes": {
        "pc1/words/pearson": (0.1040, 0.6615, 0.6948),
        "pc1/categories/pearson": (0.3538, 0.8749, 0.8001),
    },
}
_READ_OFF: dict[str, dict[str, tuple[float, float, float]]] = {  # figures' medians and quartiles, within 0.002
    "norms": {
        "f1/visual/median": (0.0, 0.102, 0.177),
        "f1/other_perceptual/median": (0.036, 0.120, 0.173),
        "f1/functional/median": (0.0, 0.087, 0.157),
        "f1/encyclopaedic/median": (0.0, 0.128, 0.051),
        "f1/taxonomic/median": (0.017, 0.193, 0.291),
    },
    "categories": {
        "silhouette/rest/lower_quartile": (0.072, 0.134, 0.107),
        "silhouette/rest/median": (0.097, 0.181, 0.149),
        "silhouette/rest/upper_quartile": (0.127, 0.221, 0.223),
    },
}


class PublishedRank(NamedTuple):
    """A phrase's target: its cosine with the phrase, and its rank in the vocabulary, from 1."""

    cosine: float
    rank: int


# results of each model, by (phrase, target)
PHRASES: dict[tuple[str, str], tuple[PublishedRank, PublishedRank, PublishedRank]] = {
    ("striped horse", "zebra"): (PublishedRank(0.12, 2914), PublishedRank(0.60, 12), PublishedRank(0.63, 8)),
    ("black and white bear", "panda"): (PublishedRank(0.13, 2478), PublishedRank(0.69, 2), PublishedRank(0.81, 2)),
    ("flying car", "plane"): (PublishedRank(0.36, 167), PublishedRank(0.66, 4), PublishedRank(0.61, 11)),
    ("round container", "bowl"): (PublishedRank(0.25, 489), PublishedRank(0.56, 8), PublishedRank(0.67, 2)),
    ("red fruit", "strawberry"): (PublishedRank(0.39, 239), PublishedRank(0.75, 3), PublishedRank(0.85, 3)),
    ("young dog", "puppy"): (PublishedRank(0.40, 94), PublishedRank(0.92, 2), PublishedRank(0.93, 2)),
    ("iced mountain", "glacier"): (PublishedRank(0.44, 20), PublishedRank(0.86, 1), PublishedRank(0.73, 5)),
    ("clear sky", "sunny"): (PublishedRank(0.27, 631), PublishedRank(0.31, 184), PublishedRank(0.34, 61)),
    ("hot weather", "summer"): (PublishedRank(0.27, 903), PublishedRank(0.52, 14), PublishedRank(0.53, 6)),
}

# the slides' words: scores on the first principal axis
PC1_WORDS: dict[str, float] = {
    "oven": 30.86,
    "zebra": 24.74,
    "car": 22.06,
    "furniture": 20.83,
    "chemistry": 18.67,
    "wood": 16.22,
    "cartoon": 11.84,
    "humid": 11.58,
    "angel": 7.22,
    "lover": 6.01,
    "defense": 4.65,
    "thousand": 3.65,
    "huge": 0.17,
    "cheerful": -2.54,
}


_MEASURES: dict[str, dict[str, tuple[float, ...]]] = {
    **_PRINTED,
    **{
        analysis: {key: tuple(map(ReadOff, numbers)) for key, numbers in of_analysis.items()}
        for analysis, of_analysis in _READ_OFF.items()
    },
}


# of the distinct rows of its 100 categories: a file of them is known by what it holds, and not by its name
SEMCAT100 = "d356caa227cc693e48e1cb98bf3bde4c93277c7cd952f2b48fad3a51ea94d22f"


def is_semcat(words: Iterable[str], categories: Iterable[str]) -> bool:
    """Return whether words by category are the paper's 100 SemCat categories, in any order, repeated or not."""
    rows = sorted({f"{category}\t{word}" for word, category in zip(words, categories, strict=True)})
    return hashlib.sha256("\n".join(rows).encode()).hexdigest() == SEMCAT100


def of(analysis: str, key: str) -> dict[str, float]:
    """Return the published figures of a measure, by the paper's model; empty if there are none."""
    numbers = _MEASURES[analysis].get(key)
    return dict(zip(MODELS, numbers, strict=True)) if numbers else {}


def keys(analysis: str) -> tuple[str, ...]:
    """Return the keys of the measures that the paper published for an analysis."""
    return tuple(_MEASURES[analysis])
