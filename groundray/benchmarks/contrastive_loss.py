"""The grounding loss against the same loss as others compute it, in time and memory.

Only how S, the similarities of all images and captions, comes about differs; the contrast in it is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from groundray.benchmarks.measure import NO_GPU, Missing, Report, Row, machine
from groundray.benchmarks.published_losses import OURS, PARTS, Contender, Problem, columns, compare
from groundray.loss.grounding_loss import grounding_loss

BASELINE = "einsum + max"
TEMPERATURE = 0.1
FLOAT = 4  # bytes
CAPTION = (
    "One loss and its gradients, float32, 196 positions, captions of 32 tokens, width 768. Memory: the peak of forward "
    "and backward beyond the inputs and beyond the gradients of V and W, which take as much as the inputs. Error: of "
    "the loss, relative to groundray's."
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a batch: image positions, and the tokens that captions are padded to."""

    batch: int
    positions: int = 196
    tokens: int = 32
    dim: int = 768


def ours(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    return grounding_loss(V, W, valid, TEMPERATURE)


def einsum_and_max(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """The usual rewrite: the match maps of all pairs at once, and autograd."""
    return _contrast(torch.einsum("ipd,ctd->ictp", V, W), valid)


def published_form(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """As in the paper's code: images and captions are repeated for every pair, and multiplied pair by pair."""
    images = V[:, None].expand(-1, len(W), -1, -1)
    captions = W[None].expand(len(V), -1, -1, -1)
    return _contrast(captions @ images.transpose(2, 3), valid)


def late_interaction(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """MaxSim of sentence-transformers, a mean over tokens: captions are the queries, images the documents."""
    from sentence_transformers.util import mean_maxsim

    return two_way_nt_xent(mean_maxsim(W, V, a_mask=valid).T, TEMPERATURE)


def _contrast(M: Tensor, valid: Tensor) -> Tensor:
    """The loss, given the match maps M [image caption token position]."""
    S = (M.max(dim=-1).values * valid).sum(dim=-1) / valid.sum(dim=-1)
    return two_way_nt_xent(S, TEMPERATURE)


def two_way_nt_xent(S: Tensor, temperature: float) -> Tensor:
    """Return the mean over i of  -log softmax_j(S_ij / temperature)[i] - log softmax_j(S_ji / temperature)[i]."""
    logits = S / temperature
    return (-F.log_softmax(logits, dim=1).diagonal() - F.log_softmax(logits, dim=0).diagonal()).mean()


def contenders(of: Shape) -> dict[str, Contender]:
    """Each way to compute the loss, with the bytes that it needs."""
    pairs = of.batch**2
    matches, embeddings = pairs * of.positions * of.tokens, pairs * of.positions * of.dim
    return {
        # the position that won, in two bytes a token at most, and tiles
        OURS: Contender(ours, pairs * of.tokens * 2 + 2**26),
        # all match maps, and the gradient of each
        BASELINE: Contender(einsum_and_max, 2 * matches * FLOAT),
        # both embeddings for each pair, and the images' gradient; one of match maps and their gradient beside them
        "published form": Contender(published_form, (2 * embeddings + pairs * of.tokens * of.dim + matches) * FLOAT),
        # blocks of 10^8 numbers and their gradients, each with a gradient of all documents; int64 for what won
        "sentence-transformers": Contender(
            late_interaction,
            (2 * 10**8 + 2 * of.batch * of.positions * of.dim) * FLOAT + pairs * of.tokens * 8,
            _not_installed(),
        ),
    }


def measure(
    batches: Sequence[int],
    tokens: Sequence[int],
    only: Sequence[str],
    repeats: int,
    most_seconds: float,
    note: Callable[[str], None],
) -> Report:
    """The benchmark `loss`.

    Args:
        tokens: valid ones of a caption's 32, on average.
        only: the contenders beside groundray; none is all.
        most_seconds: no round of a case but the first starts when its rounds have taken so long.
        note: told what is measured next.

    Raises:
        Disagreement: a contender's loss is another one.
        ValueError: an unknown contender, or more tokens than a caption has.
    """
    rows: list[Row] = []
    for device in ("cpu", "cuda"):
        for shape in map(Shape, batches):
            chosen = _chosen(contenders(shape), only)
            for valid in tokens:
                case = {"device": device, "batch": shape.batch, "tokens": valid}
                if device == "cuda" and not torch.cuda.is_available():
                    rows += [Row(case, name, dict.fromkeys(PARTS, NO_GPU)) for name in chosen]
                    continue
                note(f"loss: batch {shape.batch}, {valid} of {shape.tokens} tokens, {device}")
                problem, small = (random_problem(one, valid, device) for one in (shape, Shape(2)))
                rows += compare(case, chosen, problem, small, BASELINE, repeats, most_seconds)
    return Report("loss", CAPTION, columns(BASELINE), rows, machine())


def random_problem(shape: Shape, valid: int, device: str = "cpu") -> Problem:
    """Random V [batch positions dim] and W [batch tokens dim], and masks of `valid` tokens on average.

    Captions have up to 4 tokens more or less, where they have room. Matches have standard deviation 1, so that the
    loss depends on more than the best of them.

    Raises:
        ValueError: captions have no room for so many tokens.
    """
    if not 1 <= valid <= shape.tokens:
        raise ValueError(f"--tokens: expected 1 to {shape.tokens} valid tokens of a caption, got {valid}")
    generator = torch.Generator().manual_seed(0)
    V, W = (
        (torch.randn(shape.batch, rows, shape.dim, generator=generator) / shape.dim**0.25).to(device).requires_grad_()
        for rows in (shape.positions, shape.tokens)
    )
    spread = min(4, valid - 1, shape.tokens - valid)
    lengths = torch.randint(valid - spread, valid + spread + 1, (shape.batch, 1), generator=generator)
    return Problem((V, W, (torch.arange(shape.tokens) < lengths).to(device)), (V, W))


def _chosen(all_of_them: dict[str, Contender], only: Sequence[str]) -> dict[str, Contender]:
    if unknown := [name for name in only if name not in all_of_them]:
        raise ValueError(f"--only: expected some of {', '.join(map(repr, all_of_them))}, got {unknown[0]!r}")
    return {name: one for name, one in all_of_them.items() if name == OURS or not only or name in only}


def _not_installed() -> Missing | None:
    try:
        from sentence_transformers.util import mean_maxsim  # noqa: F401
    except ImportError:
        return Missing("sentence-transformers 6 is not installed: pip install 'groundray[pretrained]'")
    return None
