"""Population-based training as Ray Tune sees it: what each trial is given, and how a generation ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Experiment
from ray.tune.search import Searcher, SearchGenerator

from groundray import config
from groundray.data.plan import Cursor
from groundray.runtime.tune import population, trials
from groundray.runtime.tune.population import Generation
from groundray.runtime.tune.population_search import PopulationSearch
from groundray.runtime.tune.results import Trial, best_trial
from groundray.runtime.tune.search_space import parse_spaces
from groundray.runtime.tune.spec import Metric, Sweep
from groundray.training.attempts import Attempt
from groundray.training.checkpoint import Checkpoint, CheckpointStore, Snapshot

TEMPERATURE = "grounding.temperature"
RECALL = Metric("grounding", "text_to_image/recall@10", "max")
MEMBERS, EPOCHS = 4, 3  # and a generation an epoch


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    words = ["--stages=grounding", f"--grounding.epochs={EPOCHS}", f"--run.storage={tmp_path}", "--run.name=swept"]
    settings = config.load("demo", words)
    spaces = parse_spaces([f"{TEMPERATURE}=uniform:0.1:1"], settings)
    one = Sweep(settings, spaces, RECALL, "pbt", MEMBERS, 1, early_stopping=False)
    one.claim(resume=False)
    return one


def save(sweep: Sweep, run: str, epochs: int) -> None:
    """Write the checkpoint of a run after some epochs."""
    store = CheckpointStore(Attempt(sweep.folder / "trials" / run))
    cursor = Cursor(epochs)
    checkpoint = Checkpoint(store.name("grounding", cursor), "grounding", cursor, 9 * epochs, None, {}, validated=True)
    store.save(Snapshot(replace(checkpoint, kept=True), {}))


def reported(epochs: int, score: float) -> dict[str, float]:
    """What Tune knows of a trial after its last validation."""
    return {"epoch": epochs, "metric": score, "best": score + 0.01, "time_total_s": 2.0}


def given(search: PopulationSearch, *numbers: int) -> list[dict[str, Any]]:
    """Ask for trials."""
    suggested = [search.suggest(f"trial_{number}") for number in numbers]
    assert all(suggested)
    return [one for one in suggested if one]


def train(sweep: Sweep, search: PopulationSearch, scores: Mapping[int, float | None]) -> list[dict[str, Any]]:
    """Train a generation whose members come to these scores, None for one that fails; return what each was given."""
    configurations = given(search, *scores)
    for configuration, (number, score) in zip(configurations, scores.items(), strict=True):
        if score is None:
            search.on_trial_complete(f"trial_{number}", error=True)
            continue
        save(sweep, configuration["run"], configuration["until"])
        search.on_trial_complete(f"trial_{number}", reported(configuration["until"], score))
    return configurations


def written(sweep: Sweep) -> list[Generation]:
    return population.read(sweep.folder)


def test_a_generation_ends_when_the_next_trial_is_asked_for(sweep: Sweep) -> None:
    search = PopulationSearch(sweep)
    train(sweep, search, {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.6})
    assert len(written(sweep)) == 1
    first, *_ = train(sweep, search, {4: 0.9, 5: 0.8, 6: 0.5, 7: 0.6})
    assert (first["run"], first["generation"], first["since"], first["until"]) == ("trial-00000", 1, 1, 2)
    last = train(sweep, search, {8: 0.1, 9: 0.8, 10: 0.5, 11: 0.6})
    assert [one["run"] for one in last] == ["trial-00000", "trial-00001-g1", "trial-00002-g2", "trial-00003"]
    assert search.suggest("trial_12") == Searcher.FINISHED
    assert [[member.score for member in one] for one in written(sweep)] == [
        [0.9, 0.1, 0.5, 0.6],
        [0.9, 0.8, 0.5, 0.6],
        [0.1, 0.8, 0.5, 0.6],
    ]


def test_whom_a_member_follows_is_said_in_the_generation_in_which_it_does(sweep: Sweep) -> None:
    search = PopulationSearch(sweep)
    train(sweep, search, {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.6})
    _, second, *_ = train(sweep, search, {4: 0.9, 5: 0.8, 6: 0.5, 7: 0.6})
    _, third, *_ = given(search, 8, 9)
    assert second["run"] == third["run"] == "trial-00001-g1"
    assert second["continue_from"] == third["continue_from"]
    assert (second["follows"], third["follows"]) == ("trial-00000", None)


def test_a_store_that_fails_at_the_end_of_a_generation_ends_the_sweep(sweep: Sweep) -> None:
    """Tune takes what `on_trial_complete` raises for a failure of the trial, so `suggest` raises it."""
    search = PopulationSearch(sweep)
    file = Path(sweep.folder.path) / "population.json"
    content = file.read_bytes()
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    train(sweep, search, {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.6})
    with pytest.raises(OSError, match=r"population\.json"):
        search.suggest("trial_4")

    (file / "in the way").rmdir()
    file.rmdir()
    file.write_bytes(content)
    resumed = PopulationSearch(sweep)
    assert train(sweep, resumed, {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.6})[0]["generation"] == 0
    assert given(resumed, 4, 5)[1]["follows"] == "trial-00000"
    assert len(written(sweep)) == 2


def test_a_member_that_fails_follows_another(sweep: Sweep) -> None:
    search = PopulationSearch(sweep)
    train(sweep, search, {0: 0.4, 1: 0.5, 2: None, 3: 0.9})
    following = train(sweep, search, {4: 0.4, 5: 0.5, 6: 0.6, 7: 0.9})
    assert [one["follows"] for one in following] == [None, None, "trial-00003", None]
    before, now, *_ = written(sweep)
    assert [(member.score, member.error) for member in before] == [(0.4, ""), (0.5, ""), (None, "failed"), (0.9, "")]
    assert now[2].error == ""


def test_a_trial_that_returns_without_its_last_epoch_has_failed(sweep: Sweep) -> None:
    search = PopulationSearch(sweep)
    train(sweep, search, {0: 0.9, 1: 0.8, 2: 0.7})
    given(search, 3)
    assert search.suggest("trial_4") is None  # while it trains
    search.on_trial_complete("trial_3", None)
    assert given(search, 4)[0]["generation"] == 1
    causes = [member.error for member in written(sweep)[0]]
    assert causes == ["", "", "", "expected the validation of epoch 1, got none after epoch 0"]


def test_a_population_whose_members_all_fail_ends(sweep: Sweep) -> None:
    search = PopulationSearch(sweep)
    train(sweep, search, dict.fromkeys(range(MEMBERS)))
    assert search.suggest("trial_4") == Searcher.FINISHED
    assert [member.error for member in written(sweep)[0]] == ["failed"] * MEMBERS


def test_tune_asks_once_more_after_the_last_generation(sweep: Sweep) -> None:
    """It asks a search for no more than `num_samples` trials, and each asking may end a generation."""
    asked = SearchGenerator(PopulationSearch(sweep))
    asked.add_configurations(Experiment("swept", lambda config: None, num_samples=trials._most_trials(sweep)))
    count = 0
    while trial := asked.next_trial():
        count += 1
        save(sweep, trial.config["run"], trial.config["until"])
        asked.on_trial_complete(trial.trial_id, reported(trial.config["until"], 1 / count))
    assert asked.is_finished()
    assert count == MEMBERS * EPOCHS
    assert all(member.score for member in written(sweep)[-1])


@dataclass
class TuneTrial:
    """A trial as Ray Tune leaves it."""

    config: dict[str, Any]
    status: str = "TERMINATED"
    last_result: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def get_error(self) -> str:
        return self.error


def members(sweep: Sweep, *found: TuneTrial) -> dict[str, Trial]:
    values: Any = found
    return {trial.name: trial for trial in trials._members(sweep, values)}


def test_the_results_of_an_interrupted_last_generation_are_those_of_its_trials(sweep: Sweep) -> None:
    search = PopulationSearch(sweep)
    train(sweep, search, {0: 0.5, 1: 0.1, 2: 0.3, 3: 0.4})
    train(sweep, search, {4: 0.5, 5: 0.4, 6: 0.2, 7: 0.3})
    last = given(search, *range(8, 12))
    done = TuneTrial(last[3], last_result=reported(3, 0.95))
    running = TuneTrial(last[0], "RUNNING")
    found = members(sweep, running, done)
    ended = found["trial-00003"]
    assert (ended.state, ended.value, ended.epochs, ended.seconds) == ("finished", pytest.approx(0.96), 3, 6.0)
    other = found["trial-00000"]
    assert (other.state, other.value, other.epochs, other.seconds) == ("unfinished", pytest.approx(0.51), 2, 4.0)
    assert best_trial(list(found.values()), RECALL) == ended


def test_why_a_member_failed_is_kept(sweep: Sweep) -> None:
    """Tune does not tell a search, but its trials know, in the session in which they failed."""
    search = PopulationSearch(sweep)
    first = train(sweep, search, {0: 0.9, 1: 0.1, 2: None, 3: 0.4})
    train(sweep, search, {4: 0.9, 5: 0.4, 6: 0.2, 7: None})
    now = given(search, *range(8, 12))
    failed = TuneTrial(first[2], "ERROR", error="Traceback\nValueError: no luck")
    fails = TuneTrial(now[0], "ERROR", error="OSError: disk full")
    found = members(sweep, failed, fails)
    assert (found["trial-00002"].state, found["trial-00002"].error) == ("failed", "ValueError: no luck")
    assert (found["trial-00000"].state, found["trial-00000"].error) == ("failed", "OSError: disk full")
    assert (found["trial-00003"].state, found["trial-00003"].error) == ("failed", "failed")  # of a session before
    assert members(sweep)["trial-00002"].error == "ValueError: no luck"
