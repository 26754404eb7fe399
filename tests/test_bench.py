"""`python -m groundray.bench` from its command line."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CALM, SmallWorld

from groundray import bench
from groundray.benchmarks import relation_step
from groundray.benchmarks.published_losses import OURS, Contender
from groundray.benchmarks.relation_step import random_problem
from groundray.benchmarks.training_step import ALONE, ALONE_PIXELS
from groundray.cli.command import EXIT_FAILED, EXIT_SIGNAL, EXIT_USAGE
from groundray.loss.relation_loss import Scored

pytestmark = pytest.mark.thorough  # runs benchmarks


def test_help_lists_the_benchmarks_and_imports_no_torch() -> None:
    code = """
import sys
from groundray import bench
try:
    bench.main(["--help"])
finally:
    assert not {"torch", "ray"} & set(sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f"    {name} " in shown for name in ("loss", "relation", "input", "step", "update", "search", "service"))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print tables in full: pytest-xdist sets COLUMNS to 80."""
    monkeypatch.setenv("COLUMNS", "160")


def test_a_benchmark_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found" / "relation.json"
    words = ["relation", "--triplets", "5", "9", "--predicates", "4", "--repeats", "2", "--json", str(file)]
    assert bench.main(words) == 0
    shown = capsys.readouterr()
    assert shown.out.count("loop over triplets") == 3  # in the title of a column too
    assert "relation  0/24  5 triplets, 4 predicates: groundray" in shown.err
    assert "9 triplets, 4 predicates: groundray" in shown.err
    assert "left out" not in shown.out
    found = json.loads(file.read_text())
    assert found["machine"]["torch"]
    assert [row["case"]["triplets"] for row in found["rows"]] == [5] * 4 + [9] * 4
    assert all(len(row["runs"]["both"]) == 2 for row in found["rows"])


def test_rows_without_time_are_named_and_full_measures_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop over numbers takes 100 s on this clock, twice before its first round."""
    now = [0.0]

    def slow(scored: Scored) -> torch.Tensor:
        now[0] += 100
        return relation_step.number_by_number(scored)

    ways = {OURS: Contender(relation_step.ours), "slow": Contender(slow)}
    monkeypatch.setattr(relation_step, "CONTENDERS", ways)
    monkeypatch.setattr(relation_step, "BASELINE", OURS)
    monkeypatch.setattr(relation_step, "random_problem", lambda *_: random_problem(6, 4))
    assert bench.main(["relation", "--json", "-"], lambda: now[0]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["case"]["triplets"], row["contender"]) for row in found["rows"]] == [(100, OURS)]
    assert [(row["case"], row["contender"]) for row in found["left_out"]] == [
        ("100 triplets, 100 predicates", "slow"),
        ("500 triplets, 100 predicates", OURS),
        ("500 triplets, 100 predicates", "slow"),
    ]
    assert bench.main(["relation"], lambda: now[0]) == 0
    assert "left out  100 triplets, 100 predicates: slow (needs about 200 s" in capsys.readouterr().out
    assert bench.main(["relation", "--full", "--json", "-"], lambda: now[0]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(row["runs"]["both"]) for row in found["rows"]] == [2] * 4  # none starts after --max-seconds 120
    assert found["left_out"] == []


def test_ctrl_c_prints_what_has_been_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls = itertools.count()

    def interrupted(scored: Scored) -> torch.Tensor:
        if next(calls) == 7:  # in the last round of the second case, as each has two calls before its rounds
            raise KeyboardInterrupt
        return relation_step.all_pairs(scored)

    monkeypatch.setattr(relation_step, "CONTENDERS", {OURS: Contender(interrupted)})
    file = tmp_path / "relation.json"
    words = ["relation", "--triplets", "5", "9", "21", "--repeats", "2", "--json", str(file)]
    assert bench.main(words) == EXIT_SIGNAL + signal.SIGINT
    shown = capsys.readouterr()
    assert "left out  21 triplets, 100 predicates: groundray (interrupted)" in shown.out
    assert "interrupted; what had been measured is above" in shown.err
    found = json.loads(file.read_text())
    assert found["interrupted"]
    assert [(row["case"]["triplets"], len(row["runs"]["both"])) for row in found["rows"]] == [(5, 2), (9, 1)]


BLOCKED = """
import sys

sys.modules.update(dict.fromkeys({blocked!r}))  # an import fails, and `find_spec` finds none
from groundray import bench
sys.exit(bench.main({words!r}))
"""
NO_CLUSTER = ("ray", "mlflow")
ONLY_TORCH = (
    *NO_CLUSTER,
    "pydantic",
    "pydantic_settings",
    "pyarrow",
    "transformers",
    "torchvision",
    "sklearn",
    "scipy",
)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_the_loss_is_measured_with_torch_alone(precision: str) -> None:
    words = ["loss", "--device", "cpu", "--precision", precision, "--batch", "4", "--tokens", "5", "--repeats", "1"]
    words += ["--only", "einsum + max", "--json", "-"]
    code = BLOCKED.format(blocked=ONLY_TORCH, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["contender"] for row in rows] == [OURS, "einsum + max"]
    assert all(row["case"]["device"] == "cpu" and row["both"] > 0 for row in rows)


def test_a_step_is_measured_and_profiled_without_ray(world: SmallWorld, tmp_path: Path) -> None:
    words = ["step", "--config", "demo", "--workers", "0", "--device", "cpu", "--precision", "bf16", "--repeats", "1"]
    settings = world.settings("--grounding.trains.trunk=false", "--data.processes=0", *CALM)
    settings = [word for word in settings if not word.startswith("--stages")]
    words += ["--profile", str(tmp_path), "--json", "-", "--data", f"{world.shards}/captions/train", *settings]
    code = BLOCKED.format(blocked=NO_CLUSTER, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["contender"] for row in rows if row["case"]["device"] == "cpu"] == [ALONE, ALONE_PIXELS]
    assert {row["case"]["precision"] for row in rows} == {"bf16"}
    assert len(list(tmp_path.glob("*/grounding.trace.json.gz"))) == 2


def test_a_step_alone_is_measured_without_data_and_ray(world: SmallWorld, tmp_path: Path) -> None:
    settings = [word for word in world.settings(*CALM) if "tokenizer" in word or word in CALM]
    words = ["update", "--config", "demo", "--batch", "6", "--device", "cpu", "--precision", "bf16", "float32"]
    words += ["--repeats", "1", "--profile", str(tmp_path), "--json", "-", "--scaling.chunks=2", *settings]
    code = BLOCKED.format(blocked=NO_CLUSTER, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["case"]["precision"] for row in rows] == ["bf16", "float32"]
    assert all(row["step"] > 0 and row["flops_per_second"] > 0 and row["of_product"] > 0 for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "6-bf16-deterministic.txt",
        "6-float32-deterministic.txt",
    ]
    assert "aten::mm" in (tmp_path / "6-float32-deterministic.txt").read_text()


def test_gpu_rows_are_marked_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["loss", "--batch", "2", "--tokens", "4", "--only", OURS, "--repeats", "1"]) == 0
    assert ("not measured (no GPU)" in capsys.readouterr().out) != torch.cuda.is_available()


def test_contenders_that_disagree_give_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(relation_step.CONTENDERS, "wrong", Contender(lambda one: one.S.sum()))
    assert bench.main(["relation", "--triplets", "5"]) == EXIT_FAILED
    assert "error: wrong computes the loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss", "--only", "nobody"], "--only: expected some of 'groundray', 'einsum + max'"),
        (["loss", "--batch", "2", "--tokens", "40"], "--tokens: expected 1 to 32"),
        (["input", "--data", "nowhere"], "no dataset.json"),
    ],
)
def test_unusable_options_give_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(words) == EXIT_USAGE
    assert message in capsys.readouterr().err
