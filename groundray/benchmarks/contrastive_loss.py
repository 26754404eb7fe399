"""Time and memory of the grounding losses against other implementations of the same losses.

The contenders differ in how they compute S, the similarities of all images and captions; NT-Xent on S is the same. Two
of them compute the sigmoid loss of S instead, whose time groundray's NT-Xent is compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from groundray import arithmetic
from groundray.arithmetic import Precision
from groundray.benchmarks.measure import NO_GPU, Column, Missing, Report, Row, chosen_device, machine
from groundray.benchmarks.product_rate import SIDES, product_rate
from groundray.benchmarks.published_losses import OURS, PARTS, Contender, Problem, columns, compare
from groundray.benchmarks.session import Case, Session
from groundray.loss.grounding_loss import grounding_loss
from groundray.loss.match_map import position_type, sizes_on
from groundray.loss.sigmoid_loss import sigmoid_loss

BASELINE, COMPILED = "einsum + max", "einsum + max, compiled"
SIGMOID, SIGMOID_BASELINE = "groundray, sigmoid", "einsum + max, sigmoid"
KERNELS = ("flash-maxsim", "late-interaction-kernels")  # packages
GPU_ONLY = (COMPILED, *KERNELS)
TEMPERATURE, BIAS = 0.1, -10.0
FLOAT = 4  # bytes
WORKSPACE = 2**25  # bytes, of the libraries that multiply matrices
# relative, of the loss from groundray's: TF32 rounds factors to 10 bits, bfloat16 rounds all to 8
MAX_DIFFERENCE = {"float32": 1e-3, "tf32": 5e-3, "bf16": 3e-2}
CAPTION = (
    "One loss and its gradients, {precision}, 196 positions, captions of 32 tokens, width 768. Memory: the peak of "
    "forward and backward beyond the inputs and beyond the gradients of V and W, which take as much as the inputs. "
    "Error: of the loss, relative to groundray's. Of a product: the multiplications and additions of the match maps, "
    "counted once, per second, as a fraction of the {rate:,.3g} TFLOP/s of one product of {side} x {side} matrices."
)
OF_PRODUCT = Column(
    "of a product\nforward / both",
    lambda fraction: f"{fraction:.1%}",
    ("of_product_forward", "of_product_both"),
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch; captions are padded to `tokens`."""

    batch: int
    positions: int = 196
    tokens: int = 32
    dim: int = 768


def ours(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    return grounding_loss(V, W, valid, TEMPERATURE)


def our_sigmoid(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute the sigmoid loss, with gradients of a learned temperature and bias too."""
    wide = torch.promote_types(V.dtype, torch.float32)
    temperature, bias = (V.new_full((len(V),), value, dtype=wide).requires_grad_() for value in (TEMPERATURE, BIAS))
    return sigmoid_loss(V, W, valid, temperature, bias)


def einsum_and_max(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute the match maps of all pairs with one einsum, and gradients with autograd."""
    return two_way_nt_xent(_similarities(torch.einsum("ipd,ctd->ictp", V, W), valid), TEMPERATURE)


def einsum_and_sigmoid(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute the sigmoid loss of the same match maps."""
    return sigmoid(_similarities(torch.einsum("ipd,ctd->ictp", V, W), valid), TEMPERATURE, BIAS)


def compiled_einsum(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute `einsum_and_max` as torch.compile generates it."""
    return _compiled()(V, W, valid)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(einsum_and_max, dynamic=False)  # imports the compiler


def published_form(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Repeat images and captions for every pair, and multiply pair by pair, as the paper's code does."""
    images = V[:, None].expand(-1, len(W), -1, -1)
    captions = W[None].expand(len(V), -1, -1, -1)
    return two_way_nt_xent(_similarities(captions @ images.transpose(2, 3), valid), TEMPERATURE)


def late_interaction(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute MaxSim of sentence-transformers as a mean over tokens: captions are queries, images documents."""
    from sentence_transformers.util import mean_maxsim

    return two_way_nt_xent(mean_maxsim(W, V, a_mask=valid).T, TEMPERATURE)


def flash_maxsim(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute MaxSim of flash-maxsim: a fused kernel for half precision."""
    from flash_maxsim import flash_maxsim_batched_train  # pyright: ignore[reportMissingImports]

    return _contrast_of_sums(flash_maxsim_batched_train, V, W, valid)


def late_interaction_kernels(V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Compute MaxSim of late-interaction-kernels: a fused kernel."""
    from late_interaction_kernels import maxsim  # pyright: ignore[reportMissingImports]

    return _contrast_of_sums(maxsim, V, W, valid)


def _contrast_of_sums(maxsim: Callable[[Tensor, Tensor], Tensor], V: Tensor, W: Tensor, valid: Tensor) -> Tensor:
    """Return the loss of a MaxSim that sums over all tokens [caption image].

    Padding is set to zero: it adds 0 to each sum, and has no gradient.
    """
    sums = maxsim(W * valid[:, :, None], V)
    return two_way_nt_xent(sums.T / valid.sum(dim=-1), TEMPERATURE)


def _similarities(M: Tensor, valid: Tensor) -> Tensor:
    """Return the similarities [image caption] of match maps M [image caption token position]."""
    return (M.max(dim=-1).values * valid).sum(dim=-1) / valid.sum(dim=-1)


def two_way_nt_xent(S: Tensor, temperature: float) -> Tensor:
    """Return the mean over i of  -log softmax_j(S_ij / temperature)[i] - log softmax_j(S_ji / temperature)[i]."""
    logits = S / temperature
    return (-F.log_softmax(logits, dim=1).diagonal() - F.log_softmax(logits, dim=0).diagonal()).mean()


def sigmoid(S: Tensor, temperature: float, bias: float) -> Tensor:
    """Return the sum over all i and j of -log sigmoid(z_ij (S_ij / temperature + bias)) / images, z_ij = 1 if i = j
    else -1."""
    signs = 2 * torch.eye(len(S), dtype=S.dtype, device=S.device) - 1
    return -F.logsigmoid(signs * (S / temperature + bias)).sum() / len(S)


def contenders(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Contender]:
    """Return the implementations of the loss, with the bytes that each needs for embeddings of a type on a device."""
    pairs = shape.batch**2
    matches, embeddings = pairs * shape.positions * shape.tokens, pairs * shape.positions * shape.dim
    gradients = shape.batch * (shape.positions + shape.tokens) * shape.dim * FLOAT
    return {
        OURS: Contender(ours, our_needs(shape, device, dtype)),
        # all match maps and their gradients
        BASELINE: Contender(einsum_and_max, 2 * matches * dtype.itemsize),
        SIGMOID: Contender(our_sigmoid, our_needs(shape, device, dtype), computes=SIGMOID),
        SIGMOID_BASELINE: Contender(einsum_and_sigmoid, 2 * matches * dtype.itemsize, computes=SIGMOID),
        COMPILED: Contender(compiled_einsum, 2 * matches * dtype.itemsize, _only_on_a_gpu(device)),
        # both embeddings for each pair, the images' gradient, and match maps or their gradients
        "published form": Contender(
            published_form, (2 * embeddings + pairs * shape.tokens * shape.dim + matches) * dtype.itemsize
        ),
        # blocks of 10^8 numbers and their gradients, each with a gradient of all documents; maxima as int64
        "sentence-transformers": Contender(
            late_interaction,
            (2 * 10**8 + 2 * shape.batch * shape.positions * shape.dim) * FLOAT + pairs * shape.tokens * 8,
            _not_installed(),
        ),
        # the position of each maximum as int32, and gradients in float32
        **{
            package: Contender(loss, pairs * shape.tokens * 4 + gradients, _only_on_a_gpu(device, package))
            for package, loss in zip(KERNELS, (flash_maxsim, late_interaction_kernels), strict=True)
        },
    }


def our_needs(shape: Shape, device: str, dtype: torch.dtype) -> int:
    """Return about the bytes that groundray's loss needs, as `Contender.needs` counts them, from its sizes for a
    device."""
    sizes = sizes_on(device)
    pairs, images = shape.batch**2, shape.batch * shape.positions * shape.dim
    best = pairs * shape.tokens * position_type(shape.positions).itemsize
    similarities = 8 * pairs * FLOAT  # S, its softmax in two directions, and their gradients
    captions = min(shape.batch * shape.tokens, sizes.tokens + shape.tokens)
    # a tile of matches; the highest of each image and token, with its position as int64, twice
    forward = min(sizes.tile, pairs * shape.positions * shape.tokens) * FLOAT + shape.batch * captions * 2 * (FLOAT + 8)
    # blocks of rows, and gradients of half precision in float32
    backward = 4 * min(sizes.rows, images) * FLOAT
    wide = 0 if dtype.itemsize >= FLOAT else (images + shape.batch * shape.tokens * shape.dim) * FLOAT
    return best + similarities + max(forward, backward + wide) + WORKSPACE


def measure(
    batches: Sequence[int],
    tokens: Sequence[int],
    only: Sequence[str],
    device: str | None,
    precision: Precision,
    session: Session,
) -> Report:
    """Run the benchmark `loss`.

    Args:
        tokens: mean numbers of valid tokens in captions padded to 32.
        only: names of contenders besides groundray; empty for all.
        device: `cpu` or `cuda`; None for cuda if there is one, else the CPU with rows that say that there is no GPU.
        precision: of the products; for bf16, of the embeddings too.
        session: decides which rows there is time for.

    Raises:
        Disagreement: the loss of a contender differs.
        ValueError: a contender is unknown, or captions have fewer tokens.
    """
    chosen = chosen_device(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    known = {shape: _chosen(contenders(shape, chosen, dtype), only) for shape in map(Shape, batches)}
    rows: list[Row] = []
    # each contender computes as many matches as pairs; groundray fewer of captions with fewer tokens
    for (shape, losses), valid in itertools.product(known.items(), tokens):
        present = tuple(name for name, loss in losses.items() if not loss.absent)
        session.plan([Case(_title(shape, valid), present, shape.batch**2)])
    with arithmetic.using(precision, chosen):
        session.note(f"the rate of one product, {chosen}, {precision}")
        rate = product_rate(chosen, dtype if chosen == "cuda" else torch.float32)  # a CPU multiplies in float32
        with session.until_stopped():
            for (shape, losses), valid in itertools.product(known.items(), tokens):
                turns = session.begin(_title(shape, valid))
                if turns.hopeless():
                    continue
                case = {"device": chosen, "batch": shape.batch, "tokens": valid}
                problem, small = (random_problem(size, valid, chosen, dtype) for size in (shape, Shape(2)))
                matches = 2 * shape.batch * shape.positions * shape.dim * int(problem.arguments[2].sum())
                found = compare(turns, case, losses, problem, small, BASELINE, MAX_DIFFERENCE[precision])
                rows += [_with_rates(row, matches / rate) for row in found]
                if device is None and chosen == "cpu":
                    rows += [Row(case | {"device": "cuda"}, name, dict.fromkeys(PARTS, NO_GPU)) for name in losses]
    caption = CAPTION.format(precision=precision, rate=rate / 1e12, side=SIDES[chosen])
    described = machine() | {"product_rate": rate}
    return Report("loss", caption, (*columns(BASELINE), OF_PRODUCT), rows, described, ("batch", "tokens"))


def _title(shape: Shape, valid: int) -> str:
    return f"batch {shape.batch}, {valid} tokens"


def _with_rates(row: Row, seconds: float) -> Row:
    """Return a row with its speed as a fraction of that of one product.

    Args:
        seconds: time of the multiplications of the match maps at that speed.
    """
    times = {part: row.figures[part] for part in ("forward", "both")}
    rates = {f"of_product_{part}": seconds / time for part, time in times.items() if not isinstance(time, Missing)}
    return replace(row, figures={**row.figures, **rates})


def random_problem(shape: Shape, valid: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
    """Return random V [batch positions dim] and W [batch tokens dim], and masks of `valid` tokens on average.

    The number of tokens varies by up to 4. Matches have standard deviation 1, so that the loss depends on more than the
    best of them.

    Raises:
        ValueError: `valid` is below 1 or above the padded length.
    """
    if not 1 <= valid <= shape.tokens:
        raise ValueError(f"--tokens: expected 1 to {shape.tokens} valid tokens of a caption, got {valid}")
    generator = torch.Generator().manual_seed(0)
    V, W = (
        (torch.randn(shape.batch, rows, shape.dim, generator=generator) / shape.dim**0.25)
        .to(device, dtype)
        .requires_grad_()
        for rows in (shape.positions, shape.tokens)
    )
    spread = min(4, valid - 1, shape.tokens - valid)
    lengths = torch.randint(valid - spread, valid + spread + 1, (shape.batch, 1), generator=generator)
    return Problem((V, W, (torch.arange(shape.tokens) < lengths).to(device)), (V, W))


def _chosen(known: dict[str, Contender], only: Sequence[str]) -> dict[str, Contender]:
    if unknown := [name for name in only if name not in known]:
        raise ValueError(f"--only: expected some of {', '.join(map(repr, known))}, got {unknown[0]!r}")
    return {name: contender for name, contender in known.items() if name == OURS or not only or name in only}


def _only_on_a_gpu(device: str, package: str | None = None) -> Missing | None:
    """Return why a contender that is for GPUs cannot run: the device, or that a package is not installed."""
    if device != "cuda":
        return Missing("for GPUs only")
    if package and not find_spec(package.replace("-", "_")):
        return Missing(f"{package} is not installed: pip install {package}")
    return None


def _not_installed() -> Missing | None:
    with suppress(PackageNotFoundError):  # its version, as it takes seconds to import
        if int(version("sentence-transformers").partition(".")[0]) >= 6:
            return None
    return Missing("sentence-transformers 6 is not installed: pip install 'groundray[pretrained]'")
