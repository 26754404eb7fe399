"""Output of a run, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import threading

from rich.console import Console

from groundray.cli.part_progress import PartProgress
from groundray.cli.progress import Progress, Reporter
from groundray.data.sources.protocol import Split
from groundray.data.sources.webdataset import TarPart
from groundray.training.events import (
    Attempted,
    EpochDone,
    Event,
    FeaturesDone,
    FeaturesStarted,
    Notice,
    Recovered,
    StageDone,
    StageStarted,
    StepDone,
)


def printed(events: list[tuple[float, Event]], terminal: bool = False, width: int = 160) -> str:
    """Return what a reporter prints for events at their times in seconds."""
    now = [0.0]
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, markup=False)
    reporter = Reporter(console, clock=lambda: now[0])
    assert not Reporter().console._markup  # an error's text may look like it
    for when, event in events:
        now[0] = when
        reporter.observe(event)
    reporter.close()
    return out.getvalue()


def step(number: int, loss: float = 1.5) -> StepDone:
    metrics = {"loss": loss, "samples_per_second": 120.0, "time/data_wait": 0.02}
    return StepDone("grounding", 0, number, 100, metrics)


def test_a_line_every_10_seconds_has_step_loss_and_time_left() -> None:
    text = printed([(0, StageStarted("grounding", 0, 100, 2)), (5, step(5)), (11, step(10)), (12, step(11))])
    lines = text.splitlines()
    assert lines[0] == "grounding  starts: 2 epochs, 100 steps"
    # 5 steps in 6 s leave 90 of 100 steps: 108 s
    assert lines[1:] == ["grounding  epoch 1/2  step 10/100  loss 1.5000  120/s  wait 2%  1:48 left"]


def test_time_left_counts_from_the_resumed_step() -> None:
    text = printed([(0, StageStarted("grounding", 50, 100, 2)), (30, step(51)), (40, step(61))])
    lines = text.splitlines()
    assert "resumes after step 50" in lines[0]
    assert lines[1].endswith("wait 2%")  # the first step includes the start-up
    assert lines[2].endswith("0:39 left")  # 10 steps in 10 s leave 39


def test_epochs_and_stages_are_always_printed() -> None:
    epoch = EpochDone(
        "grounding", 0, 2, 50, True, {"loss": 0.25, "text_to_image/recall@1": 0.5, "text_to_image/recall@10": 0.9}
    )
    text = printed(
        [(0, StageStarted("grounding", 0, 100, 2)), (1, epoch), (2, StageDone("grounding", 100, {"loss": 0.25}))]
    )
    assert text.splitlines()[1:] == [
        "grounding  epoch 1/2  validation  loss 0.25  best so far",
        "  text_to_image  recall@1 0.5  recall@10 0.9",
        "grounding  done, best epoch  loss 0.25",
    ]


def test_a_validation_within_an_epoch_and_an_early_end_are_printed() -> None:
    within = EpochDone("grounding", 1, 4, 70, False, {"loss": 0.5}, ends_epoch=False, stale=2)
    ended = "stopped early: no better loss for 2 validations"
    done = StageDone("grounding", 70, {"loss": 0.25}, best_epoch=0, best_step=50, ended=ended)
    assert printed([(0, within), (1, done)]).splitlines() == [
        "grounding  epoch 2/4  validation at step 70  loss 0.5",
        "grounding  done, best epoch 1, step 50  loss 0.25",
        "grounding  stopped early: no better loss for 2 validations",
    ]


def test_trunk_features_are_announced_with_their_size() -> None:
    started = FeaturesStarted("grounding.train", 118_287, 8_287, 118_287 * 512 * 14 * 14 * 2, "runs/.features/ab12")
    text = printed([(0, started), (9, FeaturesDone("grounding.train", 118_287, 9.2))])
    assert text.splitlines() == [
        "grounding.train  trunk features of 8,287 of 118,287 images, 23.7 GB in total, to runs/.features/ab12",
        "grounding.train  trunk features done in 9 s",
    ]


def test_a_terminal_gets_a_bar() -> None:
    text = printed([(0, StageStarted("grounding", 0, 100, 2)), (1, step(1))], terminal=True)
    assert "━" in text


def test_recovery_is_printed() -> None:
    first = Attempted(1, "grounding", 0, "", 0, 0.0, 0)
    second = Attempted(2, "grounding", 36, "killed", 3, 4.2, 0)
    text = printed([(0, first), (0, second), (0, Recovered(2, 6.04, 21.3)), (0, Notice("[/gloo/pair.cc:534] closed"))])
    assert text.splitlines() == [
        "attempt 2  previous attempt killed; repeating 3 steps (4 s)",
        "attempt 2  first step 6.0 s after its start, 21.3 s after the previous attempt's last heartbeat",
        "note  [/gloo/pair.cc:534] closed",
    ]


def test_lines_and_bars_fit_80_columns() -> None:
    metrics = {"loss": 1.23456, "samples_per_second": 1300.0, "time/data_wait": 0.15}
    steps = [StepDone("grounding", 11, number, 3300, metrics) for number in (1200, 1230)]
    events: list[tuple[float, Event]] = [(0, StageStarted("grounding", 1199, 3300, 12)), (1, steps[0]), (12, steps[1])]
    line = printed(events).splitlines()[1]
    assert line == "grounding  epoch 12/12  step 1230/3300  loss 1.2346  1300/s  wait 15%  12:39 left"
    bars = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed(events, terminal=True, width=80)).replace("\r", "\n")
    assert max(map(len, bars.splitlines())) <= 80
    assert "wait 15%" in bars


def test_several_tasks_have_their_own_progress() -> None:
    now = [0.0]
    out = io.StringIO()
    with Progress(Console(file=out, width=80, highlight=False), clock=lambda: now[0]) as progress:
        assert list(progress.track(range(3), "images")) == [0, 1, 2]
        progress.update("vectors", 0, 5_000)
        now[0] = 11.0
        progress.update("vectors", 1_000, 5_000)
        now[0] = 12.0
        progress.update("vectors", 2_000, 5_000)
    assert out.getvalue() == "vectors  1,000/5,000  0:44 left\n"


def test_a_line_that_is_due_and_the_time_left_come_from_the_caller() -> None:
    now, out = [0.0], io.StringIO()
    with Progress(Console(file=out, width=80, highlight=False), clock=lambda: now[0]) as progress:
        progress.update("loss", 0, 8, due=True)
        now[0] = 1.0
        progress.update("loss", 1, 8, left=70.5)  # too soon
        progress.update("loss", 1, 8, detail="large", left=70.5, due=True)
    assert out.getvalue() == "loss  0/8\nloss  1/8  large  1:10 left\n"


def test_a_bar_that_is_not_live_is_drawn_at_each_update_without_a_thread() -> None:
    out, threads = io.StringIO(), threading.active_count()
    console = Console(file=out, width=80, force_terminal=True, highlight=False)
    with Progress(console, live=False) as progress:
        progress.update("loss", 1, 8, detail="small", left=70.5)
        assert threading.active_count() == threads
        assert "1/8 small 01:10" in re.sub(r"\x1b\[[0-9;?]*\w", "", out.getvalue())
        progress.update("loss", 2, 8, detail="large", left=9)
        assert "2/8 large 00:09" in re.sub(r"\x1b\[[0-9;?]*\w", "", out.getvalue())


def test_prepare_shows_samples_parts_and_what_is_left() -> None:
    def line(*splits: Split) -> str:
        now, out = [0.0], io.StringIO()
        console = Console(file=out, width=80, highlight=False, markup=False)
        done = PartProgress(Progress(console, lambda: now[0]), list(splits))
        done.tell(1000, 0)
        now[0] = 10.0
        done.tell(10_000, 1)
        done.tell(1, 0)  # too soon for another line
        return out.getvalue()

    known = Split("train", "captions", iter([]), total=21_000)
    # 10,000 samples in 10 s leave 10,000 of 21,000
    assert line(known) == "samples  11,000/21,000  1/3 parts  0:10 left\n"
    listed = Split("val", "captions", [TarPart(())] * 4)
    # 1 part in 10 s leaves 3
    assert line(listed) == "parts  1/4  11,000 samples  0:30 left\n"
    assert line(known, listed) == "parts  1/7  11,000 samples  1:00 left\n"
    assert line(Split("all", "images", iter([]))) == "samples  11,000  1 parts\n"
