"""Naive twins: what groundray computes efficiently, in loops that follow the paper's equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from groundray.rng import pick, shuffled


def similarity(V: Tensor, W: Tensor, valid: Tensor, kind: str) -> Tensor:
    """Return S(image, caption), the mean over valid tokens of the largest match over positions, pair by pair."""
    rows = []
    for image in V:
        row = []
        for caption, mask in zip(W, valid, strict=True):
            best = [max_match(image, token, kind) for token, counts in zip(caption, mask, strict=True) if counts]
            row.append(torch.stack(best).mean() if best else (image.sum() + caption.sum()) * 0)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def max_match(image: Tensor, token: Tensor, kind: str) -> Tensor:
    """Return the largest match of a token with a position of an image. Of equal ones the first has the gradient."""
    best = None
    for position in image:
        match = (position * token).sum()
        if kind == "cosine":
            match = match / (position.square().sum().sqrt() * token.square().sum().sqrt())
        if best is None or match > best:
            best = match
    assert best is not None
    return best


def pooled_similarity(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Return the cosine of the mean over positions and the mean over valid tokens, pair by pair."""
    rows = []
    for image in V:
        row = []
        for caption, mask in zip(W, valid, strict=True):
            tokens = [token for token, counts in zip(caption, mask, strict=True) if counts]
            mean = sum(tokens) / len(tokens) if tokens else caption.sum(dim=0) * 0
            own = sum(image) / len(image)
            length = mean.square().sum().sqrt() if tokens else 1
            row.append((own * mean).sum() / (own.square().sum().sqrt() * length))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def sigmoid_loss(S: Tensor, temperature: float | Tensor, bias: float | Tensor) -> Tensor:
    """Return the sum over pairs of -log sigmoid(z x), z = 1 for the pairs that match and -1 for others, divided by the
    number of samples."""
    total = torch.zeros((), dtype=S.dtype)
    count = len(S)
    for i in range(count):
        for j in range(count):
            z = 1 if i == j else -1
            total = total - torch.log(1 / (1 + torch.exp(-z * (S[i, j] / temperature + bias))))
    return total / count


def two_way_nt_xent(S: Tensor, temperature: float | Tensor) -> Tensor:
    """Return the mean over pairs of -log softmax over captions - log softmax over images, softmax written out."""
    total = torch.zeros((), dtype=S.dtype)
    count = len(S)
    for i in range(count):
        own = torch.exp(S[i, i] / temperature)
        captions = sum(torch.exp(S[i, j] / temperature) for j in range(count))
        images = sum(torch.exp(S[j, i] / temperature) for j in range(count))
        total = total - torch.log(own / captions) - torch.log(own / images)
    return total / count


def matched_ranks(S: list[list[float]], image_of: list[int]) -> tuple[list[int], list[int]]:
    """Return the rank of each caption's image, and that of the best caption of each image that has one.

    Args:
        S: similarity of each image (row) and each caption (column).
        image_of: image of each caption.
    """
    images, captions = range(len(S)), range(len(image_of))
    text_to_image = [sum(not S[i][j] < S[image_of[j]][j] for i in images) for j in captions]
    image_to_text = []
    for i in images:
        own, others = ([S[i][j] for j in captions if (image_of[j] == i) == mine] for mine in (True, False))
        if own:
            image_to_text.append(min(1 + sum(not other < score for other in others) for score in own))
    return text_to_image, image_to_text


def recalls(S: Tensor, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return the metrics of a matrix whose diagonal belongs together."""
    ranks = matched_ranks(S.tolist(), list(range(len(S))))
    metrics = {}
    for direction, of_queries in zip(("text_to_image", "image_to_text"), ranks, strict=True):
        for k in at:
            metrics[f"{direction}/recall@{k}"] = sum(rank <= k for rank in of_queries) / len(of_queries)
        metrics[f"{direction}/mean_rank"] = sum(of_queries) / len(of_queries)
        metrics[f"{direction}/median_rank"] = float(np.median(of_queries))
    return metrics


def average_precision(scores: Sequence[float], is_true: Sequence[bool]) -> float:
    """Return the mean over true samples of the fraction of true ones among those that do not score lower."""
    precisions = []
    for score, true in zip(scores, is_true, strict=True):
        if true:
            found = [other_true for other, other_true in zip(scores, is_true, strict=True) if other >= score]
            precisions.append(sum(found) / len(found))
    return sum(precisions) / len(precisions)


def attention_block(x: Tensor, positions: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """Return the spatial attention of one image [position width], head by head and position by position."""
    count, width = x.shape
    size = width // heads
    positioned = x + positions
    query, key, value = (
        positioned @ weights["attention.in_proj_weight"][part * width : (part + 1) * width].T
        + weights["attention.in_proj_bias"][part * width : (part + 1) * width]
        for part in range(3)
    )
    attended = torch.zeros_like(x)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for i in range(count):
            scores = torch.stack([(query[i, own] * key[j, own]).sum() / math.sqrt(size) for j in range(count)])
            weight = torch.exp(scores) / torch.exp(scores).sum()
            attended[i, own] = sum(weight[j] * value[j, own] for j in range(count))
    attended = attended @ weights["attention.out_proj.weight"].T + weights["attention.out_proj.bias"]
    x = layer_norm(x + attended, weights["attention_norm.weight"], weights["attention_norm.bias"])
    hidden = torch.clamp(x @ weights["ffn.0.weight"].T + weights["ffn.0.bias"], min=0)
    fed = hidden @ weights["ffn.2.weight"].T + weights["ffn.2.bias"]
    return layer_norm(x + fed, weights["ffn_norm.weight"], weights["ffn_norm.bias"])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def predicate_loss(S: Tensor, predicate: Tensor, temperature: float) -> Tensor:
    """Return Loss_rel of each triplet, one after the other."""
    losses = []
    for b, p in enumerate(predicate.tolist()):
        total = sum(torch.exp(S[b, k] / temperature) for k in range(S.shape[1]))
        losses.append(-torch.log(torch.exp(S[b, p] / temperature) / total))
    return torch.stack(losses)


def pair_loss(S: Tensor, predicate: Tensor, annotated: Tensor, temperature: float) -> Tensor:
    """Return Loss_obj of each triplet, one negative after the other."""
    losses = []
    for b, p in enumerate(predicate.tolist()):
        own = torch.exp(S[b, p] / temperature)
        total = own
        for n in range(len(S)):
            if not annotated[n, p]:
                total = total + torch.exp(S[n, p] / temperature)
        losses.append(-torch.log(own / total))
    return torch.stack(losses)


def relation_loss(chunks: list, temperature: float, weights: tuple[float, float, float], reduction: str) -> Tensor:
    """Return the weighted sum of the three losses of a batch, triplet by triplet and object by object."""
    S = torch.cat([one.S for one in chunks])
    predicate = torch.cat([one.predicate for one in chunks])
    annotated = torch.cat([one.annotated for one in chunks])
    objects = []
    for one in chunks:
        for logits, of in zip(one.logits, one.classes.tolist(), strict=True):
            objects.append(-torch.log(torch.exp(logits[of]) / torch.exp(logits).sum()))
    images = sum(one.images for one in chunks)
    parts = (
        predicate_loss(S, predicate, temperature),
        pair_loss(S, predicate, annotated, temperature),
        torch.stack(objects),
    )
    counts = [images] * 3 if reduction == "images" else [len(part) for part in parts]
    return sum(weight * part.sum() / count for weight, part, count in zip(weights, parts, counts, strict=True))


def cross_modal_attention(phrases: Tensor, V: Tensor, image: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """Return the attention of each phrase to its image, phrase by phrase and head by head."""
    size = phrases.shape[1] // heads
    seen = []
    for phrase, number in zip(phrases, image.tolist(), strict=True):
        query, keys = weights["query.weight"] @ phrase, V[number] @ weights["key.weight"].T
        values = V[number] @ weights["value.weight"].T + weights["value.bias"]
        parts = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = torch.exp(keys[:, own] @ query[own] / math.sqrt(size))
            parts.append((scores / scores.sum()) @ values[:, own])
        seen.append(torch.cat(parts))
    return torch.stack(seen)


def relation_scores(r: Tensor, pairs: Tensor, operators: Tensor) -> Tensor:
    """Return r_subject R_k r_object, pair by pair and predicate by predicate."""
    return torch.stack(
        [torch.stack([r[s] @ (R / R.square().sum().sqrt()) @ r[o] for R in operators]) for s, o in pairs.tolist()]
    )


def retrieval_vectors(x: Tensor, valid: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return a unit vector for each image or text, token by token."""
    vectors = []
    for tokens, mask in zip(x, valid, strict=True):
        mapped = [
            torch.clamp(token @ weights["0.weight"].T + weights["0.bias"], min=0) @ weights["3.weight"].T
            + weights["3.bias"]
            for token, counts in zip(tokens, mask, strict=True)
            if counts
        ]
        mean = torch.stack(mapped).mean(dim=0)
        vectors.append(mean / mean.square().sum().sqrt())
    return torch.stack(vectors)


@torch.no_grad()
def text_vector(
    model: Any, tokenizer: Any, text: str, special_tokens: bool = False, layer: int = -1, templates: tuple = ()
) -> Tensor:
    """Return a text's vector, one sentence and one word piece at a time. Its pieces follow those of the template."""
    vectors = []
    for template in templates or ("{}",):
        before, after = template.split("{}")
        ids = tokenizer(before + text + after)["input_ids"]
        state = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        special = [one in tokenizer.all_special_ids for one in ids]
        first = special.index(False) + len(tokenizer.tokenize(before))
        own = range(first, first + len(tokenizer.tokenize(text)))
        counted = [piece for place, piece in enumerate(state) if special_tokens or place in own]
        vectors.append(sum(counted) / len(counted))
    return sum(vectors) / len(vectors)


def resampled(
    figure: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    units: np.ndarray,
    seed: int,
    count: int,
) -> list[float]:
    """Return a figure for each bootstrap resample of units; all items of a drawn unit are included."""
    figures = []
    members = [np.flatnonzero(units == unit) for unit in range(units.max() + 1)]
    for resample in range(count):
        drawn = [int(pick(len(members), seed, resample, place)) for place in range(len(members))]
        items = np.concatenate([members[unit] for unit in drawn])
        figures.append(figure(x[items], y[items]))
    return figures


def silhouette(vectors: dict[str, np.ndarray], of: dict[str, set[str]], category: str, form: str) -> float:
    """Return the mean over a category's words of (b - a) / max(a, b), from the distances of all pairs of words."""

    def distance(one: str, other: str) -> float:
        u, v = vectors[one], vectors[other]
        return 1 - float(u @ v) / math.sqrt(float(u @ u) * float(v @ v))

    def mean_distance(word: str, others: Sequence[str]) -> float:
        return sum(distance(word, other) for other in others) / len(others)

    scores = []
    for word in (own := sorted(of[category])):
        a = mean_distance(word, [other for other in own if other != word])
        if form == "rest":
            b = mean_distance(word, [other for other in vectors if other not in of[category]])
        else:
            others = [mean_distance(word, sorted(words)) for words in of.values() if word not in words]
            if not others:  # the word is of all categories
                continue
            b = min(others)
        scores.append((b - a) / max(a, b))
    return sum(scores) / len(scores) if scores else math.nan


def dense_silhouettes(units: np.ndarray, of: np.ndarray) -> dict[str, np.ndarray]:
    """Return the silhouette of each category from matrices of all words and all categories.

    Args:
        of: [word category], True where a word belongs to a category.
    """
    sizes = of.sum(axis=0)
    with_each = units @ (of.T.astype(float) @ units).T
    itself = (units * units).sum(axis=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        within = 1 - (with_each - itself) / (sizes - 1)
        rest = 1 - ((units @ units.sum(axis=0))[:, None] - with_each) / (len(units) - sizes)
        nearest = np.where(of, np.inf, 1 - with_each / sizes).min(axis=1, keepdims=True)
        nearest = np.broadcast_to(np.where(np.isfinite(nearest), nearest, np.nan), of.shape)
        found = {}
        for form, between in {"rest": rest, "nearest": nearest}.items():
            larger = np.maximum(within, between)
            each = np.where(larger == 0, 0.0, (between - within) / larger)
            counted = of & ~np.isnan(between) if form == "nearest" else of
            mean = np.where(counted, each, 0).sum(axis=0) / counted.sum(axis=0)
            found[form] = np.where((sizes < 2) | (sizes == len(units)), np.nan, mean)
    return found


def dense_ranks(
    cosines: np.ndarray, targets: np.ndarray, own: np.ndarray, rounding: float, neighbours: int
) -> tuple[list[int], list[int], list[list[int]]]:
    """Return each phrase's rank of its target with and without its own words, and the nearest words by a whole sort.

    Args:
        cosines, own: [phrase word]; own is True for a phrase's own words.
    """
    near = cosines >= np.take_along_axis(cosines, targets[:, None], axis=1) - rounding
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :neighbours]
    return near.sum(axis=1).tolist(), (near & ~own).sum(axis=1).tolist(), order.tolist()


def logistic(X: np.ndarray, has: np.ndarray, X_new: np.ndarray, strength: float, balanced: bool) -> np.ndarray:
    """Return which new rows have a feature, from the minimum of strength * weighted log loss + |w|^2 / 2."""
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    Z, Z_new = (X - mean) / deviation, (X_new - mean) / deviation
    sign = np.where(has, 1.0, -1.0)
    weight = np.where(has, len(has) / (2 * has.sum()), len(has) / (2 * (~has).sum())) if balanced else np.ones(len(has))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        w, bias = parameters[:-1], parameters[-1]
        margin = sign * (Z @ w + bias)
        slope = -strength * weight * sign / (1 + np.exp(margin))
        value = strength * (weight * np.logaddexp(0, -margin)).sum() + w @ w / 2
        return float(value), np.append(Z.T @ slope + w, slope.sum())

    best = scipy.optimize.minimize(loss, np.zeros(X.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-6})
    return Z_new @ best.x[:-1] + best.x[-1] > 0


def ridge(X: np.ndarray, y: np.ndarray, X_new: np.ndarray, penalties: Sequence[float]) -> tuple[np.ndarray, float]:
    """Return the predictions for new rows less the mean of y, and the penalty with the least leave-one-out error, each
    row left out and the normal equations solved again, of columns standardised over all rows."""
    centre, scale = X.mean(axis=0), X.std(axis=0)
    Z, Z_new = (X - centre) / scale, (X_new - centre) / scale

    def weights(rows: list[int], penalty: float) -> tuple[np.ndarray, np.ndarray, float]:
        own = Z[rows] - Z[rows].mean(axis=0)
        w = np.linalg.solve(own.T @ own + penalty * np.eye(Z.shape[1]), own.T @ (y[rows] - y[rows].mean()))
        return w, Z[rows].mean(axis=0), float(y[rows].mean())

    errors = []
    for penalty in penalties:
        error = 0.0
        for left in range(len(y)):
            w, middle, mean = weights([row for row in range(len(y)) if row != left], penalty)
            error += (y[left] - mean - (Z[left] - middle) @ w) ** 2
        errors.append(error)
    best = penalties[int(np.argmin(errors))]
    return Z_new @ weights(list(range(len(y))), best)[0], best


def ranked(vectors: list[list[float]], query: list[float], k: int) -> list[tuple[int, float]]:
    """Return the rows of the `k` vectors with the highest cosine to a query, and the cosines; ties by row."""

    def cosine(one: list[float], other: list[float]) -> float:
        lengths = math.sqrt(math.fsum(x * x for x in one) * math.fsum(x * x for x in other))
        return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths

    scores = [cosine(vector, query) for vector in vectors]
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [(row, scores[row]) for row in order[:k]]


def alphas_in_top(
    vectors: list[list[float]], image: list[float], text: list[float], alphas: Sequence[float], k: int
) -> dict[int, dict[int, int]]:
    """Return the rows whose products with (1 - alpha) image + alpha text are among the `k` highest at any alpha, each
    with its rank by the number of the alpha; ties by row."""
    found: dict[int, dict[int, int]] = {}
    for number, alpha in enumerate(alphas):
        query = [(1 - alpha) * x + alpha * y for x, y in zip(image, text, strict=True)]
        products = [math.fsum(x * y for x, y in zip(vector, query, strict=True)) for vector in vectors]
        order = sorted(range(len(products)), key=lambda row: (-products[row], row))
        for rank, row in enumerate(order[:k], start=1):
            found.setdefault(row, {})[number] = rank
    return found


def analogy(vectors: list[list[float]], a: int, b: int, c: int, answers: list[int], method: str) -> list[int]:
    """Return the answers to a : b :: c : ?, best first, word by word."""

    def cosine(one: int, other: int) -> float:
        lengths = math.sqrt(math.fsum(x * x for x in vectors[one]) * math.fsum(x * x for x in vectors[other]))
        return math.fsum(x * y for x, y in zip(vectors[one], vectors[other], strict=True)) / lengths

    def score(word: int) -> float:
        if method == "3cosadd":
            return cosine(word, b) - cosine(word, a) + cosine(word, c)
        moved = [(cosine(word, other) + 1) / 2 for other in (a, b, c)]
        return moved[1] * moved[2] / (moved[0] + 0.001)

    return sorted(answers, key=lambda word: -score(word))


def epoch_order(
    group_sizes: Sequence[int], batch_size: int, chunks: int, window: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """Return the rows [step chunk row] of a shuffled epoch without its last, short batch, from a list of all rows."""
    starts = [sum(group_sizes[:group]) for group in range(len(group_sizes))]
    order = shuffled(len(group_sizes), seed, 1, epoch)
    rows = [starts[group] + row for group in order for row in range(group_sizes[group])]
    whole, rest = divmod(len(rows), batch_size)
    sizes = [len(part) for part in np.array_split(np.arange(batch_size), chunks)]
    rests = [len(part) for part in np.array_split(np.arange(rest), chunks)]
    steps: list[list[list[int]]] = [[] for _ in range(whole)]
    start = 0
    for chunk, (size, more) in enumerate(zip(sizes, rests, strict=True)):
        span, start = rows[start : start + whole * size + more], start + whole * size + more
        per_window = max(1, window // batch_size) * size
        for number, first in enumerate(range(0, len(span), per_window)):
            part = span[first : first + per_window]
            mixed = [part[place] for place in shuffled(len(part), seed, 2, epoch, chunk, number)]
            for place in range(0, len(mixed), size):
                step = (first + place) // size
                if step < whole:
                    steps[step].append(mixed[place : place + size])
    return steps


def match_score(image: list[list[float]], features: list[list[float]], weights: list[float]) -> float:
    """Return the weighted sum over features (words of a text, or positions of a picture) of their best match with a
    position of an image."""
    matches = [
        max(math.fsum(x * y for x, y in zip(position, feature, strict=True)) for position in image)
        for feature in features
    ]
    return math.fsum(weight * match for weight, match in zip(weights, matches, strict=True))


def above_mean(score: float, sample: list[float]) -> float:
    """Return a score in standard deviations above the mean of a sample."""
    mean = math.fsum(sample) / len(sample)
    return (score - mean) / max(math.sqrt(math.fsum((x - mean) ** 2 for x in sample) / len(sample)), 1e-6)
