"""What the paper published, to stand beside what is measured.

Source: Zhang, Choi, Han and Liu, "Explainable Semantic Space by Grounding Language to Vision with Cross-Modal
Contrastive Learning" (NeurIPS 2021), its slides and the authors' repository. The numbers are of the paper's own word
sets: 8,189 rated words of 100 SemCat categories, the CSLB norms, and a vocabulary whose size is not given.
"""

from __future__ import annotations

from typing import NamedTuple

MODELS = ("ungrounded", "grounded", "relational")

# analysis: measure's key: the number of each model
_MEASURES: dict[str, dict[str, tuple[float, float, float]]] = {
    "axes": {
        "pc1/words/pearson": (0.1040, 0.6615, 0.6948),
        "pc1/categories/pearson": (0.3538, 0.8749, 0.8001),
    },
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


class Found(NamedTuple):
    """Where a phrase's target stood: its cosine with the phrase, and its rank in the vocabulary, from 1."""

    cosine: float
    rank: int


# (phrase, target): what was found with each model
PHRASES: dict[tuple[str, str], tuple[Found, Found, Found]] = {
    ("striped horse", "zebra"): (Found(0.12, 2914), Found(0.60, 12), Found(0.63, 8)),
    ("black and white bear", "panda"): (Found(0.13, 2478), Found(0.69, 2), Found(0.81, 2)),
    ("flying car", "plane"): (Found(0.36, 167), Found(0.66, 4), Found(0.61, 11)),
    ("round container", "bowl"): (Found(0.25, 489), Found(0.56, 8), Found(0.67, 2)),
    ("red fruit", "strawberry"): (Found(0.39, 239), Found(0.75, 3), Found(0.85, 3)),
    ("young dog", "puppy"): (Found(0.40, 94), Found(0.92, 2), Found(0.93, 2)),
    ("iced mountain", "glacier"): (Found(0.44, 20), Found(0.86, 1), Found(0.73, 5)),
    ("clear sky", "sunny"): (Found(0.27, 631), Found(0.31, 184), Found(0.34, 61)),
    ("hot weather", "summer"): (Found(0.27, 903), Found(0.52, 14), Found(0.53, 6)),
}

# words of the slides: the score on the first principal axis
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


def of(analysis: str, key: str) -> dict[str, float]:
    """By the paper's model, what it published of a measure; empty where it published nothing."""
    numbers = _MEASURES[analysis].get(key)
    return dict(zip(MODELS, numbers, strict=True)) if numbers else {}


def keys(analysis: str) -> tuple[str, ...]:
    """The measures of an analysis that the paper has."""
    return tuple(_MEASURES[analysis])
