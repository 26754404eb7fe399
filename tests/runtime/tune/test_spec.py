"""Sweep specifications: shared stages, settings of each trial, and invalid sweeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import STAGES, SmallWorld

from groundray import config
from groundray.config import SettingsError
from groundray.runtime.tune.results import Trial
from groundray.runtime.tune.search_space import parse_spaces
from groundray.runtime.tune.spec import Metric, Search, Sweep
from groundray.sweep import command

RECALL = "grounding/text_to_image/recall@10"


def sweep(words: list[str], *space: str, metric: str = RECALL, search: Search = "grid", seeds: int = 1) -> Sweep:
    settings = config.load("demo", words)
    return Sweep(settings, parse_spaces(space, settings), Metric.parse(metric, None), search, 10, seeds, True)


@pytest.mark.parametrize(
    ("space", "metric", "before", "stages"),
    [
        ("grounding.temperature=choice:0.1,1", RECALL, ("visual", "language"), ("grounding",)),
        ("visual.dropout=choice:0.1,0.2", RECALL, (), ("visual", "language", "grounding")),
        ("data.window=choice:10,20", "language/loss", (), ("visual", "language")),
        (
            "language.mask_fraction=choice:0.1,0.2",
            "relational/predicate/top1",
            ("visual",),
            ("language", "grounding", "relational"),
        ),
    ],
)
def test_stages_that_no_trial_changes_are_trained_once(
    world: SmallWorld, tmp_path: Path, space: str, metric: str, before: tuple[str, ...], stages: tuple[str, ...]
) -> None:
    one = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=s", stages=STAGES), space, metric=metric)
    one.check()
    assert one.shared_stages == before
    assert one.stages == stages
    settings = one.settings_of({}, "trial-0")
    assert settings.stages == stages
    assert settings.run.start_from == (f"{tmp_path}/s/before/model" if before else None)
    first = one.shared_settings()
    assert (first.stages if first else ()) == before


@pytest.mark.parametrize(("workers", "first"), [("1", (1, 2)), ("2", 2), ("0", 0), ("[1,2]", (1, 2))])
def test_shared_stages_use_the_whole_cluster(world: SmallWorld, tmp_path: Path, workers: str, first: object) -> None:
    words = world.settings(
        f"--run.storage={tmp_path}", "--scaling.chunks=2", f"--scaling.num_workers={workers}", stages=STAGES
    )
    before = sweep(words, "grounding.temperature=choice:0.1,1", metric="grounding/loss").shared_settings()
    assert before is not None
    assert before.scaling.num_workers == first


def test_a_model_to_begin_with_is_every_trials(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.start_from=elsewhere/model")
    assert sweep(words, "grounding.dropout=choice:0,0.1").settings_of({}, "a").run.start_from == "elsewhere/model"


def test_the_best_trials_command_trains_it_again(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--run.name=s", stages=STAGES)
    one = sweep(words, "grounding.temperature=choice:0.1,1", "grounding.trains.language_layers=choice:1,all")
    values = {"grounding.temperature": 1, "grounding.trains.language_layers": "all"}
    trial = Trial("trial-1", values, seed=7, state="finished", value=0.5)
    preset, *words = command(one, "demo", config.find("demo"), trial)[1:]
    again = config.load(preset, words)
    assert again.identity() == one.settings_of(trial.all_values, trial.name).identity()
    assert again.grounding is not None
    assert again.grounding.trains.language_layers == "all"
    assert again.run.name == "s-best"


@pytest.mark.parametrize(
    ("space", "options", "said"),
    [
        ("grounding.temperature=choice:1", {"metric": "visual/top1"}, "expected a metric of a stage that is trained"),
        ("grounding.temperature=choice:1", {"metric": "grounding/recal@10"}, "stage grounding reports loss, "),
        ("relational.temperature=choice:1", {}, "is measured without stage relational"),
        ("grounding.temperature=uniform:0.1:1", {}, "--search grid: expected choice:"),
        ("grounding.temperature=uniform:0.1:1", {"search": "tpe", "seeds": 2}, "TPE learns from each trial"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(
    world: SmallWorld, tmp_path: Path, space: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError) as error:
        sweep(world.settings(f"--run.storage={tmp_path}"), space, **options).check()
    assert said in str(error.value)


def test_a_metric_is_a_stages(world: SmallWorld) -> None:
    with pytest.raises(SettingsError, match="expected STAGE/METRIC such as grounding/loss, got 'loss'"):
        Metric.parse("loss", None)
    orders = {text: Metric.parse(text, None).mode for text in ("a/loss", "a/b/mean_rank", "a/perplexity", "a/top1")}
    assert orders == {"a/loss": "min", "a/b/mean_rank": "min", "a/perplexity": "min", "a/top1": "max"}
    assert Metric.parse("a/loss", "max").mode == "max"


def test_a_name_belongs_to_one_sweep(world: SmallWorld, tmp_path: Path) -> None:
    one = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=s"), "grounding.temperature=choice:0.1,1")
    one.claim(resume=True)  # so that one command starts and resumes it
    one.claim(resume=True)
    with pytest.raises(SettingsError, match="holds this sweep already: give --resume"):
        one.claim(resume=False)
    with pytest.raises(SettingsError, match=r"seeds: 1 .*2 now"):
        replace(one, seeds=2).claim(resume=True)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    taken = sweep(world.settings(f"--run.storage={tmp_path}", "--run.name=run"), "grounding.temperature=choice:1")
    with pytest.raises(SettingsError, match="holds a training run: use another"):
        taken.claim(resume=False)
