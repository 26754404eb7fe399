"""Naive twins: what groundray computes cleverly, written out in loops from the paper's equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def similarity(V: Tensor, W: Tensor, valid: Tensor, kind: str) -> Tensor:
    """S(image, caption): the mean over valid tokens of the largest match over positions, pair by pair."""
    rows = []
    for image in V:
        row = []
        for caption, mask in zip(W, valid, strict=True):
            best = [max_match(image, token, kind) for token, counts in zip(caption, mask, strict=True) if counts]
            row.append(torch.stack(best).mean() if best else (image.sum() + caption.sum()) * 0)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def max_match(image: Tensor, token: Tensor, kind: str) -> Tensor:
    """The largest match of a token with a position of an image; of equal ones the first, which has the gradient."""
    best = None
    for position in image:
        match = (position * token).sum()
        if kind == "cosine":
            match = match / (position.square().sum().sqrt() * token.square().sum().sqrt())
        if best is None or match > best:
            best = match
    assert best is not None
    return best


def two_way_nt_xent(S: Tensor, temperature: float) -> Tensor:
    """-log softmax over captions - log softmax over images of each own pair, averaged; softmax written out."""
    total = torch.zeros((), dtype=S.dtype)
    count = len(S)
    for i in range(count):
        own = torch.exp(S[i, i] / temperature)
        captions = sum(torch.exp(S[i, j] / temperature) for j in range(count))
        images = sum(torch.exp(S[j, i] / temperature) for j in range(count))
        total = total - torch.log(own / captions) - torch.log(own / images)
    return total / count


def attention_block(x: Tensor, positions: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """The spatial attention of one image (position, width), head by head and position by position, without dropout."""
    count, width = x.shape
    size = width // heads
    placed = x + positions
    query, key, value = (
        placed @ weights["attention.in_proj_weight"][part * width : (part + 1) * width].T
        + weights["attention.in_proj_bias"][part * width : (part + 1) * width]
        for part in range(3)
    )
    attended = torch.zeros_like(x)
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for i in range(count):
            scores = torch.stack([(query[i, own] * key[j, own]).sum() / math.sqrt(size) for j in range(count)])
            shares = torch.exp(scores) / torch.exp(scores).sum()
            attended[i, own] = sum(share * value[j, own] for j, share in enumerate(shares))
    attended = attended @ weights["attention.out_proj.weight"].T + weights["attention.out_proj.bias"]
    x = layer_norm(x + attended, weights["attention_norm.weight"], weights["attention_norm.bias"])
    hidden = torch.clamp(x @ weights["ffn.0.weight"].T + weights["ffn.0.bias"], min=0)
    fed = hidden @ weights["ffn.2.weight"].T + weights["ffn.2.bias"]
    return layer_norm(x + fed, weights["ffn_norm.weight"], weights["ffn_norm.bias"])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def predicate_loss(S: Tensor, predicate: Tensor, temperature: float) -> Tensor:
    """Loss_rel of each triplet, one after the other."""
    losses = []
    for b, p in enumerate(predicate.tolist()):
        total = sum(torch.exp(S[b, k] / temperature) for k in range(S.shape[1]))
        losses.append(-torch.log(torch.exp(S[b, p] / temperature) / total))
    return torch.stack(losses)


def pair_loss(S: Tensor, predicate: Tensor, annotated: Tensor, temperature: float) -> Tensor:
    """Loss_obj of each triplet, one negative after the other."""
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
    """The three losses of a whole batch, triplet by triplet and object by object, weighted."""
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
    """What each phrase sees, phrase by phrase and head by head."""
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
    """r_subject R_k r_object, pair by pair and predicate by predicate, without dropout."""
    return torch.stack(
        [torch.stack([r[s] @ (R / R.square().sum().sqrt()) @ r[o] for R in operators]) for s, o in pairs.tolist()]
    )


def retrieval_vectors(x: Tensor, valid: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """One vector of length 1 for each image or text, token by token, without dropout."""
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


def ranked(vectors: list[list[float]], query: list[float], k: int) -> list[tuple[int, float]]:
    """The rows of the `k` vectors of highest cosine with a query, and the cosines; of equal ones the first."""

    def cosine(one: list[float], other: list[float]) -> float:
        lengths = math.sqrt(math.fsum(x * x for x in one) * math.fsum(x * x for x in other))
        return math.fsum(x * y for x, y in zip(one, other, strict=True)) / lengths

    scores = [cosine(vector, query) for vector in vectors]
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [(row, scores[row]) for row in order[:k]]
