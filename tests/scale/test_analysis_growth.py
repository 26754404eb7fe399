"""Analyses of words: memory grows with words and with categories, and not with their product."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import many_words
import numpy as np
import pytest
from analysis.models import SPECIAL, word_pieces
from scipy.sparse import csr_array
from traced_memory import least_peak
from transformers import BertConfig, BertModel

from groundray.analysis.measures import directions, statistics
from groundray.analysis.measures.axes import axes
from groundray.analysis.measures.categories import categories
from groundray.analysis.measures.composition import composition
from groundray.analysis.measures.feature_norms import ClassifierOptions, feature_norms
from groundray.analysis.measures.similarity import similarity
from groundray.analysis.result import Analysis
from groundray.model.export import save_language

DIM = 8


@dataclass(frozen=True)
class Made:
    """Words of two models, a category for each eight of them, and a phrase for each eight."""

    words: list[str]
    vectors: dict[str, np.ndarray]

    @classmethod
    def of(cls, count: int) -> Made:
        draw = np.random.default_rng(count)
        vectors = {model: draw.normal(size=(count, DIM)).astype(np.float32) for model in ("m", "n")}
        return cls([f"w{number}" for number in range(count)], vectors)

    @property
    def groups(self) -> int:
        return len(self.words) // 8

    @property
    def categories(self) -> list[str]:
        return [f"c{number % self.groups}" for number in range(len(self.words))]


def of_axes(made: Made) -> Analysis:
    ratings = np.random.default_rng(0).uniform(1, 5, size=len(made.words)).round(2)
    return axes(made.vectors, made.words, made.categories, ratings)


def of_categories(made: Made) -> Analysis:
    return categories(made.vectors, made.words, made.categories)


def of_composition(made: Made) -> Analysis:
    phrases = [f"{one} {other}" for one, other in zip(made.words, made.words[1:], strict=False)][: made.groups]
    near = {model: rows[: made.groups] for model, rows in made.vectors.items()}
    return composition(near, made.vectors, phrases, made.words[-made.groups :], made.words)


def of_features(made: Made) -> Analysis:
    """As many features as categories, of which two are frequent enough."""
    places = [(number, number % 2 if number < 40 else number % made.groups) for number in range(len(made.words))]
    has = csr_array((np.ones(len(places)), tuple(zip(*places, strict=True))), (len(made.words), made.groups))
    features = [f"f{number}" for number in range(made.groups)]
    options = ClassifierOptions(folds=10, processes=1)
    return feature_norms(made.vectors, made.words, features, has, [""] * made.groups, options)


def of_similarity(made: Made) -> Analysis:
    draw = np.random.default_rng(1)
    pairs = [
        (one, other, float(score))
        for one, other, score in zip(made.words, reversed(made.words), draw.random(len(made.words)), strict=True)
    ]
    return similarity(made.vectors, made.words, {"set": pairs})


@pytest.mark.parametrize("analyse", [of_axes, of_categories, of_composition, of_features, of_similarity])
def test_memory_grows_no_faster_than_words(
    analyse: Callable[[Made], Analysis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are small here. A table of words and categories would have 16 times the numbers."""
    monkeypatch.setattr(directions, "NUMBERS", 2**13)
    monkeypatch.setattr(statistics, "NUMBERS", 2**12)
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    peaks = []
    analyse(Made.of(200))  # what is made once, such as imports
    for count in (2_000, 8_000):
        made = Made.of(count)
        peaks.append(least_peak(partial(analyse, made), times=2))
    print(f"{analyse.__name__}: {peaks[0] / 1e6:.1f} MB, {peaks[1] / 1e6:.1f} MB")
    assert peaks[1] < 5 * peaks[0]  # Python keeps one object of each small integer: few words take a little less
    assert peaks[1] < 8_000 * 1_000  # a table of one byte for each word and category


WORDS, CATEGORIES, PHRASES, CONCEPTS, WIDTH = 100_000, 2_000, 1_000, 5_000, 256
COMMAND = """
import sys
from groundray import analyse
from groundray.resident_memory import peak_resident
code = analyse.main(sys.argv[1:])
print("peak", peak_resident(), code, file=sys.stderr)
"""


def write_norms(folder: Path) -> None:
    """Write norms of 100,000 words in 2,000 categories, all rated; 1,000 phrases; 5,000 pairs; two features of 5,000
    concepts, ten times as many as in McRae's norms: a classifier is fitted for each."""
    (folder / "similarity").mkdir(parents=True)
    draw = np.random.default_rng(0)
    words = [f"{number:05d}" for number in range(WORDS)]
    words = ["w" + word for word in words]
    ratings = draw.uniform(1, 5, size=WORDS).round(2)
    table = [f"c{number % CATEGORIES},{word}" for number, word in enumerate(words)]
    (folder / "categories.csv").write_text("\n".join(["category,word", *table]) + "\n")
    rated = [f"{word},{rating}" for word, rating in zip(words, ratings, strict=True)]
    (folder / "concreteness.csv").write_text("\n".join(["word,concreteness", *rated]) + "\n")
    phrases = [f"{words[number]} {words[number + 1]},{words[-1 - number]}" for number in range(PHRASES)]
    (folder / "composition.csv").write_text("\n".join(["phrase,target", *phrases]) + "\n")
    pairs = [f"{words[number]}\t{words[-1 - number]}\t{number * 7919 % 5000}" for number in range(5_000)]
    (folder / "similarity" / "made.tsv").write_text("\n".join(["word1\tword2\tscore", *pairs]) + "\n")
    features = [f"{word},f{number % 97 % 2},5" for number, word in enumerate(words[:CONCEPTS])]
    (folder / "features.csv").write_text("\n".join(["concept,feature,production_frequency", *features]) + "\n")


def write_model(folder: Path, seed: int) -> Path:
    """Write a language model of random weights with 256 dimensions that knows words of digits."""
    import torch

    tokenizer = word_pieces(("w", *(f"##{digit}" for digit in range(10))))
    torch.manual_seed(seed)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": WIDTH}
    config = BertConfig(vocab_size=len(SPECIAL) + 11, initializer_range=0.5, **shape)
    model = BertModel(config, add_pooling_layer=False)
    save_language(model, tokenizer, folder, {f"bert.{name}": tensor for name, tensor in model.state_dict().items()})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", many_words.ANALYSES)
def test_an_analysis_of_100_000_words_stays_under_2_gb(name: str) -> None:
    """Before blocks, on the same words: axes 2.7 GB, composition 3.4 GB, and categories did not fit in 12 GB."""
    run = subprocess.run([sys.executable, many_words.__file__, name], check=True, capture_output=True, text=True)
    print(name, run.stdout)
    assert json.loads(run.stdout)["peak_mb"] < 2_000


@pytest.mark.slow
def test_all_analyses_of_100_000_words_stay_under_2_gb(tmp_path: Path) -> None:
    """Two models of 256 dimensions, from the files of norms to the report."""
    write_norms(tmp_path / "norms")
    models = [f"--model={name}={write_model(tmp_path / name, seed)}" for seed, name in enumerate(("one", "two"))]
    out = tmp_path / "report"
    words = ["all", *models, f"--norms={tmp_path}/norms", f"--out={out}", f"--cache={tmp_path}/cache"]
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", COMMAND, *words], check=True, capture_output=True, text=True)
    peak, code = map(int, run.stderr.strip().splitlines()[-1].split()[1:])
    print(f"{time.monotonic() - began:.0f} s, peak {peak / 1e6:.0f} MB")
    report = json.loads((out / "report.json").read_text())
    assert code == 0
    assert set(report["analyses"]) == {"axes", "norms", "categories", "composition", "similarity"}
    assert report["analyses"]["axes"]["measures"]["pc1/words/pearson"]["items"] == WORDS
    assert report["analyses"]["categories"]["measures"]["silhouette/rest/median"]["items"] == CATEGORIES
    assert report["analyses"]["composition"]["measures"]["rank/median"]["items"] == PHRASES
    assert peak < 2e9
