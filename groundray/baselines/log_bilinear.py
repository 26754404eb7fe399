"""Vectors of co-occurrences: the log-bilinear model of GloVe (Pennington, Socher and Manning 2014).

A word i has a vector w_i, a context j a vector c_j, and both have a bias. For co-occurrences X they minimise

    1/2 sum over X_ij > 0 of f(X_ij) (w_i . c_j + b_i + d_j - log X_ij)^2,    f(x) = min(1, (x / x_max)^alpha)

A word's vector is w_i + c_i. With several kinds t of co-occurrences (ViCo's multi-task model, Gupta, Schwing and Hoiem
2019) the sum goes over them too, each with its own biases, and the product is that of A_t w_i and A_t c_j, with a
linear map A_t of each kind.

Non-zero entries are taken in random order, in batches, and the parameters follow AdaGrad (Duchi et al. 2011) as in the
authors' code (glove.c): sums of squares start at 1 and hold (rate x gradient)^2, and a step is taken before its own
gradient is added. With batches of one entry it is that code's loop, for one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array

from groundray.baselines.watch import Unwatched, Watch
from groundray.rng import shuffled

_ORDER, _START = 1, 2  # keep the draws of the order and of the first parameters independent
BATCHES, MOST = 20, 4096  # of an epoch, at least; entries of a batch, at most


@dataclass(frozen=True)
class Options:
    """Options of the model and its solver. Defaults are GloVe's.

    Attributes:
        width: number of dimensions of a vector.
        epochs: number of passes over the non-zero entries.
        x_max: count from which entries have the full weight.
        alpha: exponent of the weight of smaller ones.
        rate: learning rate of AdaGrad.
        seed: seed of the first parameters and of the order.
    """

    width: int
    epochs: int = 50
    x_max: float = 100.0
    alpha: float = 0.75
    rate: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("epochs", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"--{name}: expected at least {least}, got {value}")
        for name in ("x_max", "alpha", "rate"):
            if not 0 < (value := getattr(self, name)) < np.inf:
                raise ValueError(f"--{name.replace('_', '-')}: expected a finite number above 0, got {value:g}")


class Parameters(NamedTuple):
    """Parameters of the model, their gradients, or AdaGrad's sums of squares.

    Attributes:
        maps: the linear map of each kind of co-occurrence; None for the identity.
    """

    words: Float[np.ndarray, "word dim"]
    contexts: Float[np.ndarray, "word dim"]
    word_biases: Float[np.ndarray, "kind word"]
    context_biases: Float[np.ndarray, "kind word"]
    maps: Float[np.ndarray, "kind dim part"] | None = None


class Entries(NamedTuple):
    """Non-zero entries of the matrices of co-occurrences."""

    kind: Int[np.ndarray, " entry"]
    word: Int[np.ndarray, " entry"]
    context: Int[np.ndarray, " entry"]
    sum: Float[np.ndarray, " entry"]

    @staticmethod
    def of(matrices: Sequence[csr_array]) -> Entries:
        """Return the non-zero entries of each kind's matrix."""
        parts = [coo_array(matrix) for matrix in matrices]
        kinds = [np.full(len(part.data), kind, np.int32) for kind, part in enumerate(parts)]
        words, contexts = ([part.coords[axis].astype(np.int32) for part in parts] for axis in (0, 1))
        counts = [part.data for part in parts]
        return Entries(*map(np.concatenate, (kinds, words, contexts, counts)))

    def take(self, places: Int[np.ndarray, " entry"]) -> Entries:
        return Entries(*(column[places] for column in self))


class Step(NamedTuple):
    """The cost of some entries of one kind, and its gradient in the rows that they use.

    Attributes:
        words, contexts: indices of the rows, each once.
        map: gradient of the kind's map; None without maps.
    """

    cost: float
    words: Int[np.ndarray, " used"]
    contexts: Int[np.ndarray, " used"]
    of_words: Float[np.ndarray, "used dim"]
    of_contexts: Float[np.ndarray, "used dim"]
    of_word_biases: Float[np.ndarray, " used"]
    of_context_biases: Float[np.ndarray, " used"]
    map: Float[np.ndarray, "dim part"] | None


def fit(
    matrices: Sequence[csr_array],
    options: Options,
    part: int | None = None,
    watch: Watch = Unwatched(),  # noqa: B008  it has no state
    task: str = "vectors",
) -> Float[np.ndarray, "word dim"]:
    """Return the vector of each word, float32, the same bits for the same arguments.

    A word that occurs with no other has the vector zero.

    Args:
        matrices: co-occurrences of each kind: a sparse matrix with a row for each word and a column for each context.
        part: width of the space that each kind's linear map leads to; None for the identity.
        watch, task: show the epochs that are done and the mean cost of an entry, under this name.

    Raises:
        ValueError: there is no entry, or the parameters diverge.
    """
    entries = Entries.of(matrices)
    if not len(entries.sum):
        raise ValueError("expected words that occur together, got none: give more data")
    words = len(matrices[0].indptr) - 1
    parameters = start(words, len(matrices), options, part)
    batch = batch_of(len(entries.sum))
    sums = first_sums(parameters)
    for epoch in range(options.epochs):
        order = shuffled(len(entries.sum), options.seed, _ORDER, epoch)
        cost = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # of a fit that diverges
            for first in range(0, len(order), batch):
                cost += descend(parameters, sums, entries.take(order[first : first + batch]), options)
        if not np.isfinite(cost):
            raise ValueError(f"the vectors diverge in epoch {epoch + 1}: give a smaller --rate than {options.rate:g}")
        watch.update(task, epoch + 1, options.epochs, detail=f"cost {cost / len(order):.4f}")
    vectors = parameters.words + parameters.contexts
    vectors[np.bincount(entries.word, minlength=words) == 0] = 0
    return vectors


def batch_of(entries: int) -> int:
    """Return the number of entries of a step: on the embedded world's captions, 1 to 1,024 of 6,465 entries have the
    same cost within 2% after 20 epochs."""
    return max(1, min(MOST, entries // BATCHES))


def start(words: int, kinds: int, options: Options, part: int | None = None) -> Parameters:
    """Return the first parameters: uniform within 1/2 of 0, divided by the width; maps orthogonal and random."""
    draw = np.random.default_rng([options.seed, _START])

    def uniform(*shape: int) -> np.ndarray:
        return ((draw.random(shape) - 0.5) / options.width).astype(np.float32)

    table, biases = (words, options.width), (kinds, words)
    parameters = Parameters(uniform(*table), uniform(*table), uniform(*biases), uniform(*biases))
    if part is None:
        return parameters
    maps = np.linalg.qr(draw.normal(size=(kinds, options.width, part)))[0]
    return parameters._replace(maps=maps.astype(np.float32))


def first_sums(parameters: Parameters) -> Parameters:
    """Return AdaGrad's sums of squares before the first step."""
    words, contexts, word_biases, context_biases = map(np.ones_like, parameters[:4])
    maps = None if parameters.maps is None else np.ones_like(parameters.maps)
    return Parameters(words, contexts, word_biases, context_biases, maps)


def descend(parameters: Parameters, sums: Parameters, entries: Entries, options: Options) -> float:
    """Take a step of AdaGrad on some entries, which changes the parameters and the sums, and return their cost before
    it."""
    cost = 0.0
    for kind in np.unique(entries.kind).tolist():
        step = gradient(parameters, entries.take(np.flatnonzero(entries.kind == kind)), options)
        cost += step.cost
        for array, squares, rows, slope in (
            (parameters.words, sums.words, step.words, step.of_words),
            (parameters.contexts, sums.contexts, step.contexts, step.of_contexts),
            (parameters.word_biases[kind], sums.word_biases[kind], step.words, step.of_word_biases),
            (parameters.context_biases[kind], sums.context_biases[kind], step.contexts, step.of_context_biases),
        ):
            change = options.rate * slope
            array[rows] -= change / np.sqrt(squares[rows])
            squares[rows] += change**2
        if parameters.maps is not None and sums.maps is not None and step.map is not None:
            change = options.rate * step.map
            parameters.maps[kind] -= change / np.sqrt(sums.maps[kind])
            sums.maps[kind] += change**2
    return cost


def gradient(parameters: Parameters, entries: Entries, options: Options) -> Step:
    """Return the cost of entries, all of one kind, and its gradient, in the parameters' precision."""
    kind = int(entries.kind[0])
    w, c = parameters.words[entries.word], parameters.contexts[entries.context]
    A = None if parameters.maps is None else parameters.maps[kind]
    u, v = (w, c) if A is None else (w @ A, c @ A)
    count = entries.sum.astype(w.dtype)
    product = np.einsum("n d, n d -> n", u, v)
    biases = parameters.word_biases[kind][entries.word] + parameters.context_biases[kind][entries.context]
    error = product + biases - np.log(count)
    slope = np.minimum(1, (count / options.x_max) ** options.alpha).astype(w.dtype) * error
    du, dv = slope[:, None] * v, slope[:, None] * u
    words, to_words = _added_up(entries.word, w.dtype)
    contexts, to_contexts = _added_up(entries.context, w.dtype)
    return Step(
        float(0.5 * (slope * error).sum()),
        words,
        contexts,
        to_words @ (du if A is None else du @ A.T),
        to_contexts @ (dv if A is None else dv @ A.T),
        to_words @ slope,
        to_contexts @ slope,
        None if A is None else w.T @ du + c.T @ dv,
    )


def _added_up(rows: Int[np.ndarray, " entry"], dtype: np.dtype) -> tuple[Int[np.ndarray, " used"], csr_array]:
    """Return the distinct rows, and the matrix that adds up what entries have for the same row."""
    used, places = np.unique(rows, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(places))])
    return used, csr_array((np.ones(len(rows), dtype), order, starts), (len(used), len(rows)))
