"""GloVe's model: gradients against autograd, steps against a loop over single entries, and the same bits each time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from groundray.baselines import log_bilinear
from groundray.baselines.log_bilinear import Entries, Options, Parameters

WORDS, WIDTH, PART = 7, 4, 3
OPTIONS = Options(WIDTH, epochs=3, x_max=5, seed=1)


def counts(seed: int = 0) -> csr_array:
    """Co-occurrences of 7 words, of which the last one occurs with none."""
    draw = np.random.default_rng(seed)
    matrix = draw.integers(0, 9, (WORDS, WORDS)) * (draw.random((WORDS, WORDS)) < 0.6)
    matrix[-1] = matrix[:, -1] = 0
    return csr_array(matrix.astype(np.float64))


def parameters(kinds: int, part: int | None) -> Parameters:
    """In double precision, away from the start, where gradients are small."""
    found = log_bilinear.start(WORDS, kinds, OPTIONS, part)
    draw = np.random.default_rng(3)
    return Parameters(*(None if array is None else array + draw.normal(size=array.shape) for array in found))


def torch_cost(tensors: list[torch.Tensor], kind: int, matrix: csr_array, part: int | None) -> torch.Tensor:
    """The equation of the module, over all entries one by one."""
    cost = torch.zeros((), dtype=torch.float64)
    W, C, b, d, *maps = tensors
    dense = matrix.toarray()
    for i, j in zip(*np.nonzero(dense), strict=True):
        u, v = (W[i], C[j]) if part is None else (W[i] @ maps[0][kind], C[j] @ maps[0][kind])
        weight = min(1.0, (dense[i, j] / OPTIONS.x_max) ** OPTIONS.alpha)
        cost = cost + 0.5 * weight * (u @ v + b[kind, i] + d[kind, j] - math.log(dense[i, j])) ** 2
    return cost


@pytest.mark.parametrize("part", [None, PART])
def test_gradients_are_those_of_autograd(part: int | None) -> None:
    matrices = [counts(0), counts(1)]
    own = parameters(2, part)
    entries = Entries.of(matrices)
    for kind in (0, 1):
        step = log_bilinear.gradient(own, entries.take(np.flatnonzero(entries.kind == kind)), OPTIONS)
        tensors = [torch.tensor(array, requires_grad=True) for array in own if array is not None]
        cost = torch_cost(tensors, kind, matrices[kind], part)
        cost.backward()
        assert step.cost == pytest.approx(cost.item(), rel=1e-12)
        W, C, b, d, *maps = [tensor.grad.numpy() for tensor in tensors if tensor.grad is not None]
        for found, true in (
            (step.of_words, W[step.words]),
            (step.of_contexts, C[step.contexts]),
            (step.of_word_biases, b[kind, step.words]),
            (step.of_context_biases, d[kind, step.contexts]),
            (step.map, maps[0][kind] if maps else None),
        ):
            if true is not None:
                np.testing.assert_allclose(found, true, rtol=1e-10, atol=1e-12)
        unused = np.setdiff1d(np.arange(WORDS), step.words)
        assert not W[unused].any()


def naive_epoch(own: Parameters, sums: Parameters, entries: Entries, order: np.ndarray) -> float:
    """The loop of glove.c over single entries, with the squares of rate x gradient added after each change."""
    cost, rate = 0.0, OPTIONS.rate
    W, C, b, d, _ = own
    SW, SC, Sb, Sd, _ = sums
    for entry in order.tolist():
        i, j, x = int(entries.word[entry]), int(entries.context[entry]), float(entries.sum[entry])
        error = float(W[i] @ C[j] + b[0, i] + d[0, j]) - math.log(x)
        slope = error if x > OPTIONS.x_max else (x / OPTIONS.x_max) ** OPTIONS.alpha * error
        cost += 0.5 * slope * error
        of_word, of_context = rate * slope * C[j], rate * slope * W[i]
        W[i] -= of_word / np.sqrt(SW[i])
        C[j] -= of_context / np.sqrt(SC[j])
        SW[i] += of_word**2
        SC[j] += of_context**2
        b[0, i] -= rate * slope / math.sqrt(Sb[0, i])
        d[0, j] -= rate * slope / math.sqrt(Sd[0, j])
        Sb[0, i] += (rate * slope) ** 2
        Sd[0, j] += (rate * slope) ** 2
    return cost


def test_steps_of_one_entry_are_those_of_the_published_loop() -> None:
    entries = Entries.of([counts()])
    order = np.random.default_rng(0).permutation(len(entries.sum))
    own, other = parameters(1, None), parameters(1, None)
    sums, others = log_bilinear.first_sums(own), log_bilinear.first_sums(other)
    for _ in range(3):
        cost = sum(log_bilinear.descend(own, sums, entries.take(np.array([entry])), OPTIONS) for entry in order)
        assert cost == pytest.approx(naive_epoch(other, others, entries, order), rel=1e-12)
    for found, true in zip((*own, *sums), (*other, *others), strict=True):
        if true is not None:
            np.testing.assert_allclose(found, true, rtol=1e-10)


class Costs:
    """Keeps what is shown of the epochs."""

    def __init__(self) -> None:
        self.shown: list[float] = []

    def update(self, task: str, done: int, total: int | None, *, detail: str = "") -> None:
        self.shown.append(float(detail.split()[-1]))

    def track(self, items: object, task: str) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("part", [None, 2])
def test_a_fit_is_the_same_each_time_and_lowers_the_cost(part: int | None) -> None:
    options = Options(WIDTH, epochs=12, x_max=5)
    watch = Costs()
    vectors = log_bilinear.fit([counts(0), counts(1)], options, part, watch)  # type: ignore[arg-type]
    assert np.array_equal(vectors, log_bilinear.fit([counts(0), counts(1)], options, part))
    other = log_bilinear.fit([counts(0), counts(1)], Options(WIDTH, epochs=12, x_max=5, seed=1), part)
    assert not np.allclose(vectors, other)
    assert watch.shown[-1] < watch.shown[0] / 2
    assert vectors.dtype == np.float32
    assert not vectors[-1].any()  # occurs with no other
    assert vectors[:-1].any(axis=1).all()


def test_the_fit_finds_the_counts() -> None:
    """With as many dimensions as words, products and biases reach the logarithms of all counts."""
    dense = np.random.default_rng(0).integers(1, 20, (5, 5)).astype(np.float64)
    options = Options(5, epochs=400, x_max=1)
    entries = Entries.of([csr_array(dense)])
    own = log_bilinear.start(5, 1, options)
    sums = log_bilinear.first_sums(own)
    for _ in range(options.epochs):
        log_bilinear.descend(own, sums, entries, options)
    found = own.words @ own.contexts.T + own.word_biases[0][:, None] + own.context_biases[0]
    np.testing.assert_allclose(found, np.log(dense), atol=0.1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("width", 0),
        ("epochs", 0),
        ("seed", -1),
        ("x_max", 0.0),
        ("alpha", -1.0),
        ("rate", math.nan),
        ("alpha", math.inf),
    ],
)
def test_impossible_options_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}: expected .*got"):
        Options(**{"width": 4, option: value})


def test_a_fit_that_diverges_names_the_option() -> None:
    with pytest.raises(ValueError, match="diverge in epoch 1: give a smaller --rate"):
        log_bilinear.fit([counts()], Options(WIDTH, rate=1e30))


def test_words_that_never_occur_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="words that occur together, got none"):
        log_bilinear.fit([csr_array((3, 3))], OPTIONS)
