"""Measurements of the benchmarks, checked on runs and allocations of known cost."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from groundray.benchmarks import measure
from groundray.benchmarks.measure import Column, Missing, Report, Row, medians, peak_memory


def test_medians_of_runs() -> None:
    assert medians({"odd": [9.0, 1.0, 2.0], "even": [1.0, 4.0]}) == {"odd": 2.0, "even": 2.5}


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is watched on Linux")
def test_memory_of_a_known_allocation() -> None:
    def call() -> None:
        torch.ones(50_000_000)  # 200 MB, freed at once

    found = peak_memory(call, "cpu")
    assert isinstance(found, float)
    assert 199e6 <= found < 230e6  # to a page or two: the kernel counts them late


def test_case_beyond_memory_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "free_memory", lambda _: 7_100_000_000)
    assert measure.too_large(14_200_000_000, "cpu") == Missing("needs 14.2 GB, 7.1 GB are free")
    assert measure.too_large(7_000_000_000, "cpu") is None


def report() -> Report:
    columns = (
        Column("time", measure.seconds, ("time",)),
        Column("ratios", measure.times, ("time", "of_other")),
        Column("memory", measure.megabytes, ("memory",)),
    )
    figures = {"time": 2.0, "of_other": 4.0, "memory": Missing("no Linux")}
    absent = dict.fromkeys(("time", "memory"), measure.NO_GPU)
    rows = [
        Row({"size": 3, "width": 1}, "ours", figures, {"time": [1.0, 2.0, 3.0]}),
        Row({"size": 4, "width": 1}, "other", absent),
    ]
    return Report("trial", "Of two.", columns, rows, {"cpu": "one"})


def test_json_holds_every_run_and_why_a_figure_is_missing() -> None:
    assert report().as_json() == {
        "bench": "trial",
        "about": "Of two.",
        "machine": {"cpu": "one"},
        "rows": [
            {
                "case": {"size": 3, "width": 1},
                "contender": "ours",
                "time": 2.0,
                "of_other": 4.0,
                "memory": None,
                "reasons": {"memory": "no Linux"},
                "runs": {"time": [1.0, 2.0, 3.0]},
            },
            {
                "case": {"size": 4, "width": 1},
                "contender": "other",
                "time": None,
                "memory": None,
                "reasons": {"time": "no GPU", "memory": "no GPU"},
                "runs": {},
            },
        ],
    }


def test_a_table_says_what_is_missing_once() -> None:
    console = Console(width=120, record=True)
    console.print(report().table())
    shown = console.export_text()
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if "│" in line]
    place = next(place for place, cells in enumerate(lines) if "ours" in cells)
    assert lines[place] == ["ours", "2.000 s", "2.00 / 4.00", ""]
    assert lines[place + 1] == ["not measured (no Linux)", "", "", ""]
    assert "other" not in shown
    assert "On a GPU: not measured (no GPU)." in shown
    assert "width" not in shown  # the same in all cases
    console.print(replace(report(), sizes=("width",)).table())
    assert "width" in console.export_text()


def test_the_machine_is_described() -> None:
    found = measure.machine()
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["cpu"]


def test_ratios_are_of_the_same_round() -> None:
    runs = {"rate": measure.ratios([1.0, 4.0, 9.0], [2.0, 2.0, 3.0])}
    assert measure.spread(runs, "rate") == {"rate_least": 0.5, "rate": 2.0, "rate_most": 3.0}


def test_a_contender_is_compared_with_a_baseline_that_was_measured() -> None:
    figures = {"rate": [1.0, 4.0, 9.0]}
    assert measure.compared(figures, None, "rate", "ratio") == ({"rate": 4.0}, figures)
    found, runs = measure.compared(figures, {"rate": [2.0, 2.0, 3.0]}, "rate", "ratio")
    assert found == {"rate": 4.0, "ratio_least": 0.5, "ratio": 2.0, "ratio_most": 3.0}
    assert runs == {**figures, "ratio": [0.5, 2.0, 3.0]}


def test_cpu_seconds_count_those_of_processes_that_were_started() -> None:
    before, own = measure.cpu_seconds(), time.process_time()
    busy = "import time\nwhile time.process_time() < 1: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        used = measure.cpu_between(before, measure.cpu_seconds())
        process.communicate(b"\n")
    assert used - (time.process_time() - own) > 0.9
    assert measure.cpu_between({1: 5.0, 2: 3.0}, {2: 4.0, 3: 2.0}) == 3.0
