"""The contenders compute what their naive twins compute, in value and gradient, or the comparison is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import reference
import torch

from groundray.benchmarks import contrastive_loss, relation_step
from groundray.benchmarks.measure import Missing, Row
from groundray.benchmarks.published_losses import OURS, Contender, Disagreement, Problem, compare
from groundray.benchmarks.session import Case, Session

SMALL = contrastive_loss.Shape(3, positions=4, tokens=5, dim=6)


def grounding_problem() -> Problem:
    V, W, valid = contrastive_loss.random_problem(SMALL, 3).arguments
    V, W = (tensor.detach().double().requires_grad_() for tensor in (V, W))
    return Problem((V, W, valid), (V, W))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_nt_xent_is_its_twin(temperature: float) -> None:
    S = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, twins = contrastive_loss.two_way_nt_xent(S, temperature), reference.two_way_nt_xent(S, temperature)
    torch.testing.assert_close(ours, twins, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours, S)[0], torch.autograd.grad(twins, S)[0], rtol=1e-10, atol=1e-14
    )


def test_nt_xent_does_not_underflow() -> None:
    """Softmax and then log gives infinity here: the right caption is far behind."""
    S = torch.tensor([[0.0, 90.0], [90.0, 0.0]])
    assert contrastive_loss.two_way_nt_xent(S, 0.1).item() == pytest.approx(1800.0)


# those for GPUs: tests/gpu
@pytest.mark.parametrize(
    "name", [name for name in contrastive_loss.contenders(SMALL) if name not in contrastive_loss.GPU_ONLY]
)
def test_each_form_of_the_grounding_loss_is_its_twin(name: str) -> None:
    contender, problem = contrastive_loss.contenders(SMALL)[name], grounding_problem()
    if contender.absent:
        pytest.skip(contender.absent.reason)
    found = contender.loss(*problem.arguments)
    S, temperature = reference.similarity(*problem.arguments, "dot"), contrastive_loss.TEMPERATURE
    twin = (
        reference.sigmoid_loss(S, temperature, contrastive_loss.BIAS)
        if contender.computes == contrastive_loss.SIGMOID
        else reference.two_way_nt_xent(S, temperature)
    )
    # sentence-transformers adds up in float32
    tolerance = 1e-5 if name == "sentence-transformers" else 1e-10
    torch.testing.assert_close(found.double(), twin, rtol=tolerance, atol=tolerance)
    for ours, expected in zip(
        torch.autograd.grad(found, problem.sources), torch.autograd.grad(twin, problem.sources), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", list(relation_step.CONTENDERS))
def test_each_form_of_the_relation_loss_is_its_twin(name: str) -> None:
    problem = relation_step.random_problem(7, 5)
    (one,), sources = problem.arguments, problem.sources
    found = relation_step.CONTENDERS[name].loss(one)
    twin = (
        reference.predicate_loss(one.S, one.predicate, 1.0)
        + reference.pair_loss(one.S, one.predicate, one.annotated, 1.0)
    ).mean()
    torch.testing.assert_close(found, twin)
    torch.testing.assert_close(torch.autograd.grad(found, sources), torch.autograd.grad(twin, sources))


def test_contenders_for_gpus_are_named_with_the_reason_why_they_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive_loss, "find_spec", lambda _: None)
    for device, reason in (("cpu", "for GPUs only"), ("cuda", "not installed: pip install ")):
        known = contrastive_loss.contenders(SMALL, device)
        missing = {name: known[name].absent for name in contrastive_loss.KERNELS}
        assert all(found is not None and reason in str(found) for found in missing.values())
    assert known[contrastive_loss.COMPILED].absent is None


def test_the_loss_is_compared_with_the_rate_of_a_product() -> None:
    report = contrastive_loss.measure([8], [20], [OURS], "cpu", "float32", Session(repeats=1))
    (row,) = report.rows
    matches = 2 * 8 * 8 * 196 * 768 * 20  # the mean number of tokens varies by up to 4
    rate = row.figures["of_product_both"] * row.figures["both"] * report.machine["product_rate"]
    assert rate == pytest.approx(matches, rel=0.2)


def test_captions_have_as_many_tokens_as_asked_for_on_average() -> None:
    *_, valid = contrastive_loss.random_problem(contrastive_loss.Shape(400, positions=1, dim=1), 14).arguments
    lengths = valid.sum(dim=1)
    assert (lengths.min().item(), lengths.max().item()) == (10, 18)
    assert lengths.double().mean().item() == pytest.approx(14, abs=0.3)
    assert contrastive_loss.random_problem(contrastive_loss.Shape(2, positions=1, dim=1), 32).arguments[2].all()
    with pytest.raises(ValueError, match=r"--tokens: expected 1 to 32 valid tokens of a caption, got 33"):
        contrastive_loss.random_problem(contrastive_loss.Shape(2), 33)


def measured(
    forms: dict[str, Contender], problem: Problem, baseline: str, session: Session | None = None
) -> Iterator[Row]:
    """Compare the forms in a case of one size, in one round unless a session is given."""
    session = session or Session(repeats=1)
    session.plan([Case("one size", tuple(forms))])
    return compare(session.begin("one size"), {"size": 4}, forms, problem, problem, baseline)


def test_a_contender_that_fails_is_named_with_its_error() -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory")

    problem = grounding_problem()
    known = {OURS: Contender(contrastive_loss.ours), "broken": Contender(broken)}
    ours, theirs = measured(known, problem, OURS)
    assert ours.figures["both"]
    assert str(theirs.figures["both"]) == "not measured (it fails: RuntimeError: out of resource: shared memory)"
    with pytest.raises(RuntimeError, match="shared memory"):
        list(measured({OURS: Contender(broken)}, problem, OURS))


def numbers() -> Problem:
    x = torch.arange(4.0, requires_grad=True)
    return Problem((x,), (x,))


def test_a_comparison_has_times_ratios_memory_and_error() -> None:
    forms = {
        OURS: Contender(lambda x: x.square().sum()),
        "other": Contender(lambda x: (x * x).sum()),
        "huge": Contender(lambda x: x.sum(), needs=10**15),
        "gone": Contender(lambda x: x.sum(), absent=Missing("not installed")),
    }
    ours, other, huge, gone = measured(forms, numbers(), "other", Session(repeats=3))
    assert ours.figures["ours_as_fast_both"] == 1.0
    assert other.figures["of_baseline"] == 1.0
    assert other.figures["error"] == 0.0
    assert [len(values) for values in other.runs.values()] == [3, 3, 3]
    assert isinstance(huge.figures["both"], Missing)
    assert "needs 1000000.0 GB" in huge.figures["both"].reason
    assert gone.figures["both"] == Missing("not installed")


def test_a_contender_without_time_has_no_row() -> None:
    """On this clock a call of it takes a second, and groundray's none."""
    now = [0.0]

    def slow(x: torch.Tensor) -> torch.Tensor:
        now[0] += 1
        return x.sum()

    session = Session(repeats=5, limit=10, clock=lambda: now[0])
    session.plan([Case("small", (OURS, "slow")), Case("large", (OURS, "slow"), work=9)])
    forms = {OURS: Contender(lambda x: x.sum()), "slow": Contender(slow)}
    rows = [
        row
        for title in ("small", "large")
        for row in compare(session.begin(title), {"size": title}, forms, numbers(), numbers(), "slow")
    ]
    assert [(row.case["size"], row.contender) for row in rows] == [("small", OURS), ("small", "slow"), ("large", OURS)]
    assert ["of_baseline" in row.figures for row in rows] == [True, True, False]
    assert [(row.case, row.contender) for row in session.left_out()] == [("large", "slow")]


def test_another_loss_is_no_contender() -> None:
    forms = {OURS: Contender(lambda x: x.sum()), "other": Contender(lambda x: 1.01 * x.sum())}
    with pytest.raises(Disagreement, match=r"other computes the loss 6.06, groundray 6: .* at most 0.001, got 0.01"):
        list(measured(forms, numbers(), OURS))


def test_contenders_of_another_loss_are_compared_with_each_other() -> None:
    forms = {
        OURS: Contender(lambda x: x.sum()),
        "ours, square": Contender(lambda x: x.square().sum(), computes="square"),
        "their square": Contender(lambda x: 1.01 * (x * x).sum(), computes="square"),
    }
    with pytest.raises(Disagreement, match=r"their square computes the loss 14.14, ours, square 14: .* got 0.01"):
        list(measured(forms, numbers(), OURS))


def test_forward_and_backward_are_timed_in_each_round() -> None:
    (row,) = measured({OURS: Contender(lambda x: x.square().sum())}, numbers(), OURS, Session(repeats=2))
    assert [len(row.runs[part]) for part in ("forward", "backward", "both")] == [2, 2, 2]
    for forward, backward, both in zip(row.runs["forward"], row.runs["backward"], row.runs["both"], strict=True):
        assert forward > 0
        assert backward > 0
        assert both == pytest.approx(forward + backward)


def test_loss_benchmark_imports_neither_ray_nor_mlflow() -> None:
    code = """
import sys
from groundray import bench
assert bench.main(["loss", "--batch", "2", "--tokens", "4", "--only", "groundray", "--repeats", "1"]) == 0
assert not {"ray", "mlflow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
