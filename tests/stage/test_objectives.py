"""Each objective of the grounding stage against its naive twin: loss and gradient of all parameters, on one, two and
four ranks, in even and uneven chunks, with accumulation and without."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from nccl_rules import nccl_rules
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.utils._python_dispatch import TorchDispatchMode

from groundray import config
from groundray.arithmetic import Precision, weight_type
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Source, Step
from groundray.distributed import barrier
from groundray.loss import match_map
from groundray.loss.sigmoid_loss import sigmoid_loss
from groundray.model.build import learn_logits
from groundray.model.grounded import GroundedModel
from groundray.model.heads import MAX_SCALE, GroundingHeads
from groundray.special_tokens import BERT
from groundray.stage.contrastive import Encoded
from groundray.stage.grounding import GroundingStage
from groundray.training.gradient_sums import GradientSums
from groundray.training.loop import compute_gradients, encode
from groundray.training.timing import StepTimer

POSITIONS, TOKENS, WIDTH, WORDS = 4, 5, 6, 11
LENGTHS = (4, 5, 3, 5, 2, 3, 4, 5, 3, 4)  # word pieces of each caption, [CLS] and [SEP] included
OBJECTIVES = list(itertools.product(("match_map", "pooled"), ("nt_xent", "sigmoid"), (False, True)))


class Case(NamedTuple):
    """An objective, the sizes of the global batch's chunks, and how it is computed."""

    alignment: str
    loss: str
    learn: bool
    chunks: tuple[int, ...]
    accumulate: bool = False
    precision: Precision = "float64"
    special_tokens: bool = True

    def stage(self) -> GroundingStage:
        settings = config.Grounding(
            train="t",
            val="v",
            batch_size=10,
            alignment=self.alignment,  # type: ignore[arg-type]
            loss=self.loss,  # type: ignore[arg-type]
            learn_temperature=self.learn,
            temperature=0.2,
            similarity="cosine",
            precision=self.precision,
            special_tokens=self.special_tokens,
        )
        return GroundingStage(settings, Mock(spec=Source), Mock(spec=Source))


CASES = [
    *(Case(*objective, (3, 3, 2, 2)) for objective in OBJECTIVES),
    *(Case(*objective, (1, 2, 3, 0), accumulate=True, special_tokens=False) for objective in OBJECTIVES),
    *(Case(*objective, (0, 4, 0, 4)) for objective in OBJECTIVES if objective[2]),
    *(Case(*objective, (1,) * 8, precision="float32") for objective in OBJECTIVES if objective[2]),
    *(Case(*objective, (2, 2, 2, 2), precision="bf16") for objective in OBJECTIVES if objective[2]),
]


class Visual(nn.Linear):
    """Each pixel of an image is a position."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(2).transpose(1, 2).to(self.weight.dtype) / 255)

    def empty(self) -> Tensor:
        return self.weight.new_zeros(0, POSITIONS, WIDTH)


class Language(nn.Embedding):
    special_tokens = BERT

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return super().forward(tokens)


class Toy(GroundedModel):
    """Streams of one layer, and the grounding heads."""

    width = WIDTH  # type: ignore[assignment]

    def __init__(self, stage: GroundingStage):
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.visual, self.language = cast("Any", Visual(3, WIDTH)), cast("Any", Language(WORDS, WIDTH))
        head = GroundingHeads(WIDTH, "pytorch")
        learn_logits(head, stage.settings)
        if head.logits.bias is not None:
            head.logits.bias.data.fill_(-1.0)  # at -10 a pair that does not match has hardly a gradient
        self.heads = nn.ModuleDict({"grounding": head})
        self.to(weight_type(stage.settings.precision))


def batch_of(samples: slice) -> CaptionBatch:
    """Return some of the ten samples, padded to their longest caption."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (len(LENGTHS), 3, 2, POSITIONS // 2), generator=generator)[samples]
    tokens = torch.randint(WORDS, (len(LENGTHS), TOKENS), generator=generator)[samples]
    lengths = torch.tensor(LENGTHS)[samples]
    longest = max(LENGTHS[samples], default=0)
    mask = torch.arange(longest) < lengths[:, None]
    ids = tuple(map(str, range(samples.start, samples.stop)))
    return CaptionBatch(ids, images.to(torch.uint8), tokens[:, :longest], mask)


def results(case: Case, rank: int = 0, size: int = 1) -> list[Tensor]:
    """Return the loss, and the gradient of each parameter over all ranks, computed as in training."""
    stage = case.stage()
    model = Toy(stage)
    ends = list(itertools.accumulate(case.chunks))
    each = len(case.chunks) // size
    chunks = [
        (number, batch_of(slice(ends[number] - case.chunks[number], ends[number])))
        for number in range(rank * each, (rank + 1) * each)
    ]
    parameters = list(model.parameters())
    sums = GradientSums(parameters)
    step = Step(0, 0, False, tuple(chunks))
    loss, metrics = compute_gradients(stage, model, step, 0, case.accumulate, StepTimer(), sums)
    sums.finish()
    assert set(metrics) == ({"temperature"} if case.learn else set()) | ({"bias"} if case.loss == "sigmoid" else set())
    return [loss.detach(), *(cast("Tensor", parameter.grad) for parameter in parameters)]


def naive_results(case: Case) -> list[Tensor]:
    """Return the same of the whole batch, pair by pair, in float64."""
    import reference  # not in each rank's process: it imports scipy

    stage = case._replace(precision="float64").stage()
    model = Toy(stage)
    batch, head = batch_of(slice(0, sum(case.chunks))), model.head(GroundingHeads)
    V = head.visual(model.visual(batch.images))
    W = head.language(model.language(batch.tokens, batch.attention_mask))
    valid = batch.attention_mask.clone()
    if not case.special_tokens:
        for row, length in zip(valid, LENGTHS, strict=False):
            row[0] = row[length - 1] = False
    pooled = case.alignment == "pooled"
    S = reference.pooled_similarity(V, W, valid) if pooled else reference.similarity(V, W, valid, "cosine")
    log_scale, bias = head.logits.log_scale, head.logits.bias
    temperature = 0.2 if log_scale is None else 1 / torch.exp(log_scale)
    if case.loss == "sigmoid":
        assert bias is not None
        loss = reference.sigmoid_loss(S, temperature, bias)
    else:
        loss = reference.two_way_nt_xent(S, temperature)
    parameters = list(model.parameters())
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def on_a_rank(rank: int, folder: str) -> None:
    """Run in a process of its own: save its results as one of four ranks, then as one of two."""
    torch.set_num_threads(1)
    for size in (4, 2):
        if rank < size:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{size}", rank=rank, world_size=size)
            with nccl_rules():
                outputs = [results(case, rank, size) for case in CASES]
                barrier()
            torch.save(outputs, f"{folder}/{rank}-of-{size}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank() -> list[list[Tensor]]:
    torch.set_num_threads(1)
    return [results(case) for case in CASES]


def check(case: Case, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    # relative to each gradient's largest entry: small entries may be differences of larger numbers. bfloat16 rounds to
    # 8 bits at every layer, and may so decide for another of two nearly equal positions
    tolerance = {"float64": 1e-12, "float32": 2e-5, "bf16": 2**-3}[case.precision]
    assert len(found) == len(expected) == 8 + case.learn + (case.loss == "sigmoid")
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * max(1e-2, other.abs().max()), case


def test_each_objective_is_its_naive_twin(one_rank: list[list[Tensor]]) -> None:
    for case, found in zip(CASES, one_rank, strict=True):
        check(case, found, naive_results(case))


@pytest.mark.thorough
def test_two_and_four_ranks_give_the_loss_and_gradients_of_one(one_rank: list[list[Tensor]], tmp_path: Path) -> None:
    """To the last bit of the loss."""
    spawn(on_a_rank, (str(tmp_path),), nprocs=4)
    for size, rank in itertools.chain(((4, rank) for rank in range(4)), ((2, rank) for rank in range(2))):
        outputs = torch.load(tmp_path / f"{rank}-of-{size}.pt")
        for case, found, expected in zip(CASES, outputs, one_rank, strict=True):
            assert torch.equal(found[0], expected[0]), (case, size)
            check(case, found, expected)


def problem(samples: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    V, W = (torch.randn(samples, rows, 3, dtype=torch.float64, generator=generator) for rows in (2, 4))
    valid = torch.arange(4) < torch.randint(5, (samples, 1), generator=generator)
    return V.requires_grad_(), W.requires_grad_(), valid


@pytest.mark.parametrize("tile", [12, 36, 60, 10**6])
@pytest.mark.parametrize("chunks", [None, [5, 7], [1, 11, 0]])
def test_the_sigmoid_loss_is_its_twin_in_tiles_of_any_size(
    tile: int, chunks: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reference

    monkeypatch.setitem(match_map.SIZES, "cpu", match_map.Sizes(8, tile, 24))
    V, W, valid = problem()
    loss = sigmoid_loss(V, W, valid, 0.3, -0.7, "dot", chunks)
    twin = reference.sigmoid_loss(reference.similarity(V, W, valid, "dot"), 0.3, -0.7)
    torch.testing.assert_close(loss, twin, rtol=1e-12, atol=0)
    found, expected = torch.autograd.grad(3 * loss, [V, W]), torch.autograd.grad(3 * twin, [V, W])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_the_sigmoid_loss_holds_a_tile_of_the_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is computed has more numbers than the tile, or the inputs; NT-Xent holds the matrix."""
    from groundray.loss.grounding_loss import grounding_loss

    samples = 64

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, tuple | list) else [found]:
                if isinstance(one, Tensor):
                    self.numbers = max(self.numbers, one.numel())
            return found

    generator = torch.Generator().manual_seed(0)
    V, W = (torch.randn(samples, 1, 2, generator=generator).requires_grad_() for _ in range(2))
    valid = torch.ones(samples, 1, dtype=torch.bool)
    monkeypatch.setitem(match_map.SIZES, "cpu", match_map.Sizes(8, 4 * samples, 64))
    numbers = {}
    for name, loss in {
        "sigmoid": lambda: sigmoid_loss(V, W, valid, 0.1, -1.0),
        "nt_xent": lambda: grounding_loss(V, W, valid, 0.1),
    }.items():
        with Largest() as largest:
            loss().backward()
        numbers[name] = largest.numbers
    assert numbers["sigmoid"] <= 4 * samples < samples**2 <= numbers["nt_xent"]


def test_the_sigmoid_loss_neither_underflows_nor_overflows() -> None:
    """Each of the two matched pairs far behind costs its logit; pairs far on their side cost nothing."""
    eye, valid = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.ones(2, 1, dtype=torch.bool)
    assert sigmoid_loss(eye, eye * -90, valid, 0.1, -1000.0).item() == pytest.approx(1900.0)
    assert sigmoid_loss(eye, eye * 90, valid, 0.1, -200.0).item() == 0


def test_an_empty_batch_has_the_sigmoid_loss_zero() -> None:
    empty = torch.zeros(0, 5, 6), torch.zeros(0, 0, 6), torch.zeros(0, 0, dtype=torch.bool)
    assert sigmoid_loss(*empty, 0.1, -10.0).item() == 0


def test_a_learned_temperature_is_bounded_and_returns() -> None:
    """The step that passes the bound is taken back; a gradient away from it has its effect at once."""
    heads = GroundingHeads(2)
    heads.logits.learn(0.011, None)
    log_scale = heads.logits.log_scale
    assert log_scale is not None
    optimizer = torch.optim.SGD(heads.logits.parameters(), lr=1.0)
    for slope, expected in ((-1.0, 1 / MAX_SCALE), (-1.0, 1 / MAX_SCALE), (0.5, 1 / MAX_SCALE * 2.718281828**0.5)):
        log_scale.grad = torch.tensor(slope)
        optimizer.step()
        temperature, bias = heads.logits(3)
        assert temperature is not None
        assert bias is None
        assert temperature.tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_only_learned_parameters_are_kept_with_the_heads() -> None:
    heads = GroundingHeads(2)
    plain = set(heads.state_dict())
    assert plain == {f"{name}.{part}" for name in ("visual", "language") for part in ("weight", "bias")}
    heads.logits.learn(0.1, -10.0)
    assert set(heads.state_dict()) - plain == {"logits.log_scale", "logits.bias"}
    assert heads.logits.log_scale is not None
    heads.logits.log_scale.data.fill_(3.0)
    heads.logits.learn(0.5, None)  # what is learned already keeps its value
    assert set(heads.state_dict()) - plain == {"logits.log_scale"}
    assert heads.logits.log_scale.item() == 3.0


def test_encodings_hold_what_is_learned_for_each_sample() -> None:
    stage = Case("pooled", "sigmoid", True, (3,)).stage()
    model = Toy(stage)
    encoded: Encoded = encode(stage, model, batch_of(slice(0, 3)))
    assert encoded.V.shape == encoded.W.shape == (3, 1, WIDTH)
    assert encoded.temperature is not None
    assert encoded.temperature.tolist() == pytest.approx([0.2] * 3)
    assert encoded.bias is not None
    assert encoded.bias.tolist() == [-1.0] * 3
    assert encoded.on_host()[3:] == (None, None)
