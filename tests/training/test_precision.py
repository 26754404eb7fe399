"""A step of every stage in every precision, and the operators of every stage against those that a GPU refuses."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import encoders
import pytest
import torch
from conftest import STAGES, SmallWorld
from cuda_autocast import ClaimsCuda, claimed_on_cuda, cuda_autocast
from one_step import Outcome, distance, first_steps
from pretend_gpu import PretendGpu
from test_workers import alone
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from groundray import config
from groundray.arithmetic import Precision, autocast
from groundray.data.plan import Cursor
from groundray.data.stream import stream
from groundray.model.pretrained import load_encoder
from groundray.model.trunk import build_trunk
from groundray.training import preflight, progression, trunk_features
from groundray.training.events import EpochDone, Event, Notice, StepDone
from groundray.training.loop import encode, validate
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs in every precision

# Operators that have no deterministic algorithm on CUDA, as the documentation of torch.use_deterministic_algorithms
# lists them (2.15), by their name in a profile.
REFUSED = {
    *("aten::avg_pool3d_backward", "aten::_adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool3d_backward"),
    *("aten::adaptive_max_pool2d_backward", "aten::adaptive_max_pool3d_backward"),
    *("aten::fractional_max_pool2d_backward", "aten::fractional_max_pool3d_backward"),
    *("aten::max_unpool2d", "aten::max_unpool3d", "aten::grid_sampler_2d_backward", "aten::grid_sampler_3d_backward"),
    *(f"aten::upsample_{mode}_backward" for mode in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")),
    *(f"aten::_upsample_{mode}2d_aa_backward" for mode in ("bilinear", "bicubic")),
    *(f"aten::reflection_pad{dimensions}d_backward" for dimensions in (1, 2, 3)),
    *("aten::nll_loss2d_forward", "aten::nll_loss2d_backward", "aten::_ctc_loss_backward"),
    *("aten::_embedding_bag_backward", "aten::_embedding_bag_dense_backward"),  # of mode max
    *("aten::put_", "aten::histc", "aten::bincount", "aten::median", "aten::nanmedian", "aten::kthvalue"),
    *("aten::scatter_reduce", "aten::scatter_reduce_", "aten::index_reduce", "aten::index_reduce_"),
}


@pytest.fixture(scope="module")
def outcomes(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision], dict[str, Outcome]]:
    """Returns the first step of each stage from the same weights, without dropout, in a precision."""
    storage = tmp_path_factory.mktemp("runs")

    @functools.cache
    def step(precision: Precision) -> dict[str, Outcome]:
        words = [f"--{stage}.precision={precision}" for stage in STAGES.split(",")]
        words += ["--scaling.chunks=2", "--visual.batch_size=14", "--language.batch_size=20"]
        settings = config.load("demo", world.settings(*words, f"--run.storage={storage}", stages=STAGES))
        return first_steps(settings)

    return step


@pytest.mark.parametrize("stage", STAGES.split(","))
def test_a_step_in_float64_is_float64_from_end_to_end_and_what_float32_rounds(
    outcomes: Callable[[Precision], dict[str, Outcome]], stage: str
) -> None:
    """A float32 sum of n numbers is within about sqrt(n) 2^-24 of the truth: 1e-5 for sums of 10,000 numbers.

    The visual stage trains a trunk of maxima and ReLUs, whose gradient jumps where rounding decides between two sides.
    """
    truth, found = outcomes("float64")[stage], outcomes("float32")[stage]
    for outcome, kind in ((truth, torch.float64), (found, torch.float32)):
        assert {x.dtype for x in (*outcome.encoded, outcome.loss, outcome.gradient)} == {kind}
    torch.testing.assert_close(found.loss.double(), truth.loss, rtol=1e-5, atol=0)
    assert 0 < distance(found.gradient, truth.gradient) < (5e-3 if stage == "visual" else 1e-4)


@pytest.mark.parametrize("stage", STAGES.split(","))
def test_bf16_rounds_the_forward_pass_alone(outcomes: Callable[[Precision], dict[str, Outcome]], stage: str) -> None:
    truth, found = outcomes("float64")[stage], outcomes("bf16")[stage]
    assert {x.dtype for x in (found.loss, found.gradient)} == {torch.float32}
    torch.testing.assert_close(found.loss.double(), truth.loss, rtol=2e-3, atol=0)
    assert 1e-3 < distance(found.gradient, truth.gradient) < 0.3


LISTS_OF_A_GPU = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA's autocast")


@LISTS_OF_A_GPU
def test_softmax_is_float32_under_the_autocast_lists_of_a_gpu_alone() -> None:
    x = torch.ones(2, 2)
    found = {}
    for device, y in (("cpu", x), ("cuda", ClaimsCuda(x))):
        with cuda_autocast(), autocast("bf16", device):
            product = y @ y
            found[device] = product.dtype, product.softmax(dim=0).dtype
    assert found == {"cpu": (torch.bfloat16, torch.bfloat16), "cuda": (torch.bfloat16, torch.float32)}


@LISTS_OF_A_GPU
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_types_under_the_autocast_lists_of_a_gpu(world: SmallWorld, tmp_path: Path, precision: str) -> None:
    """They differ from a CPU's: on a GPU, layer norms and softmax give float32, and operations may meet two types."""
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    expected = {
        "visual": {"logits": torch.float32},
        "language": {"logits": torch.float32},
        "grounding": {"V": half, "W": half},
        "relational": {"S": torch.float32, "logits": torch.float32},
        "retrieval": {"V": torch.float32, "W": torch.float32},
    }
    words = [f"--{stage}.precision={precision}" for stage in STAGES.split(",")]
    settings = config.load("demo", world.settings(*words, f"--run.storage={tmp_path}", stages=STAGES))
    model, heads = progression.initial_model(settings)
    for stage in preflight.check(settings).stages:
        progression.attach_heads(stage, model, heads, settings)
        stage.prepare(model)
        _, batch = next(stream(stage.train, Cursor(), 1)).chunks[0]
        moved = {name: ClaimsCuda(x) for name, x in batch.tensors.items() if name not in batch.on_host}
        with cuda_autocast():
            encoded = encode(stage, claimed_on_cuda(copy.deepcopy(model)), replace(batch, **moved))
            loss, _ = stage.loss([encoded])
        assert {name: getattr(encoded, name).dtype for name in expected[stage.name]} == expected[stage.name]
        assert loss.dtype == torch.float32
        assert loss.is_cuda


def test_tf32_on_a_cpu_is_float32_bit_for_bit(outcomes: Callable[[Precision], dict[str, Outcome]]) -> None:
    for stage, found in outcomes("tf32").items():
        expected = outcomes("float32")[stage]
        assert torch.equal(found.loss, expected.loss)
        assert torch.equal(found.gradient, expected.gradient)


def test_a_run_says_that_tf32_is_float32_on_a_cpu(world: SmallWorld, tmp_path: Path) -> None:
    words = [f"--run.storage={tmp_path}", "--grounding.precision=tf32", "--grounding.epochs=1"]
    events = alone([*world.settings(*words), "--scaling.deterministic=false"])
    told = [event.text for event in events if isinstance(event, Notice)]
    assert told == ["grounding.precision: tf32 is a format of GPUs, and float32 on a CPU"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_on_a_gpu_sets_precision_and_determinism_around_each_stage_and_pass(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """Trunk features are computed in float32, always deterministically."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NCCL_ALGO"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    plain, seen, notices = trunk_features.feature_maps, {}, []

    @functools.wraps(plain)
    def feature_maps(*arguments: Any) -> Any:
        seen["features"] = now()
        return plain(*arguments)

    def observe(event: Event) -> None:
        if isinstance(event, StepDone | EpochDone):
            seen[type(event)] = now()
        if isinstance(event, Notice):
            notices.append(event.text)

    def now() -> tuple[Any, bool]:
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        return torch.backends.cuda.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()

    monkeypatch.setattr(trunk_features, "feature_maps", feature_maps)
    words = ["--grounding.precision=tf32", "--grounding.trains.trunk=false", f"--run.storage={tmp_path}"]
    words.append("--grounding.batch_size=36")
    settings = config.load("demo", [*world.settings(*words), f"--scaling.deterministic={deterministic}"])
    before = torch.backends.cuda.matmul.fp32_precision
    with PretendGpu():
        progression.run_stages(preflight.check(settings), InProcess(observe, device="cuda"))
    assert seen == {"features": ("ieee", True), StepDone: ("tf32", deterministic), EpochDone: ("tf32", deterministic)}
    assert (torch.backends.cuda.matmul.fp32_precision, torch.are_deterministic_algorithms_enabled()) == (before, False)
    warned = ["scaling.deterministic is false: if the run is killed, it ends with other weights"]
    assert notices == ([] if deterministic else warned)


def operators(work: Callable[[], object]) -> set[str]:
    """The names of all operators that a computation calls, in backward passes and in operators of our own too."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        work()
    return {event.key for event in recorded.key_averages()}


def test_an_operator_that_a_gpu_refuses_is_found() -> None:
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    assert operators(lambda: F.adaptive_avg_pool2d(x, 2).sum().backward()) & REFUSED
    assert operators(lambda: F.interpolate(x, scale_factor=2.0, mode="bilinear").sum().backward()) & REFUSED
    assert operators(lambda: F.cross_entropy(x, torch.zeros(1, 3, 3, dtype=torch.int64))) & REFUSED


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_stage_calls_an_operator_that_a_gpu_refuses(world: SmallWorld, tmp_path: Path, precision: str) -> None:
    """In a step with dropout and a validation, on the paths that a GPU takes."""
    words = [f"--{stage}.precision={precision}" for stage in STAGES.split(",")]
    settings = config.load("demo", world.settings(*words, f"--run.storage={tmp_path}", stages=STAGES))
    model, heads = progression.initial_model(settings)
    with PretendGpu():
        model.to("cuda")
        for stage in preflight.check(settings).stages:
            progression.attach_heads(stage, model, heads, settings)
            stage.prepare(model)
            step, held_out = (next(stream(source, Cursor(), 1)).to("cuda") for source in (stage.train, stage.val))

            def work() -> None:
                loss, _ = stage.loss([encode(stage, model, samples) for _, samples in step.chunks])  # noqa: B023
                loss.backward()
                validate(stage, model, [held_out])  # noqa: B023

            called = operators(work)
            assert any(name.endswith("backward") for name in called)
            assert not called & REFUSED, stage.name


@pytest.mark.parametrize(
    "name", ["vgg16", "efficientnet_lite0", "timm/vit_tiny_patch16_224", "timm/convnext_atto", "timm/resnet18"]
)
def test_no_trunk_calls_an_operator_that_a_gpu_refuses(name: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="extra `models` is not installed")
    trunk = build_trunk(name, image_size=64)
    called = operators(lambda: trunk(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).sum().backward())
    assert "aten::convolution_backward" in called
    assert not called & REFUSED


@pytest.mark.parametrize("name", ["modernbert", "siglip_text_model"])
def test_two_steps_of_other_encoders_in_bf16_are_near_those_in_float32(
    world: SmallWorld, tmp_path: Path, name: str
) -> None:
    losses: dict[str, list[float]] = {}
    moved: dict[str, torch.Tensor] = {}
    for precision in ("float32", "bf16"):
        words = world.settings(
            f"--model.language.name={encoders.write(tmp_path / name, name)}",
            "--model.language.weights=published",
            "--model.language.tokenizer=null",
            *(
                "--model.attention_heads=2",
                "--grounding.epochs=1",
                "--grounding.batch_size=36",
                "--grounding.dropout=0",
            ),
            f"--grounding.precision={precision}",
            f"--run.storage={tmp_path / precision}",
        )
        events: list[Event] = []
        progression.run_stages(preflight.check(config.load("demo", words)), InProcess(events.append))
        losses[precision] = [event.metrics["loss"] for event in events if isinstance(event, StepDone)]
        encoders_of = [
            load_encoder(config.Language(name=str(tmp_path / precision / "demo" / "model" / f"language-{label}")))
            for label in ("ungrounded", "grounded")
        ]
        start, end = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in encoders_of)
        moved[precision] = end - start
    assert len(losses["bf16"]) == 2
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)  # bf16 has 8 bits
    assert losses["bf16"] != losses["float32"]
    assert moved["bf16"].isfinite().all()
    assert torch.cosine_similarity(moved["bf16"], moved["float32"], dim=0) > 0.9
