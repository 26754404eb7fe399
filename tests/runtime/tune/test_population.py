"""Population-based training: who follows whom, with which values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from groundray.runtime.tune import population
from groundray.runtime.tune.population import Generation, Member, first_generation, next_generation
from groundray.runtime.tune.search_space import Space
from groundray.storage.folder import Folder

RATE = Space.parse("grounding.optimizer.lr=loguniform:0.001:0.1")
DROPOUT = Space.parse("grounding.dropout=choice:0.0,0.1,0.2")
SPACES = (RATE, DROPOUT)


def scored(*scores: float | None) -> Generation:
    """A generation whose members have these scores."""
    members = first_generation(SPACES, len(scores), 0)
    return tuple(replace(member, score=score, value=score) for member, score in zip(members, scores, strict=True))


def after(members: Generation, seed: int = 0, number: int = 1, missing: tuple[str, ...] = ()) -> Generation:
    checkpoints = {member.run: f"/{member.run}/checkpoints/a" for member in members if member.run not in missing}
    return next_generation(members, number, 3, checkpoints, SPACES, "max", seed)


def test_the_first_generation_is_drawn_within_the_spaces_and_by_the_seed() -> None:
    drawn = first_generation(SPACES, 20, 0)
    assert [member.run for member in drawn] == [f"trial-{number:05d}" for number in range(20)]
    rates = [member.values[RATE.name] for member in drawn]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert len(set(rates)) == 20
    assert 5 <= sum(rate < 0.01 for rate in rates) <= 15  # the logarithm's middle
    assert {member.values[DROPOUT.name] for member in drawn} == {0.0, 0.1, 0.2}
    assert drawn == first_generation(SPACES, 20, 0)
    assert drawn != first_generation(SPACES, 20, 1)


def test_the_weakest_quarter_follows_the_strongest() -> None:
    members = scored(0.5, 0.1, 0.9, 0.6, 0.2, 0.8, 0.4, 0.3)
    following = after(members)
    strongest = {"trial-00002", "trial-00005"}
    for place, (before, now) in enumerate(zip(members, following, strict=True)):
        if place not in (1, 4):
            assert now == replace(before, score=None)
            continue
        assert now.run == f"trial-0000{place}-g1"
        assert now.follows in strongest
        assert (now.since, now.epochs) == (3, 3)
        assert now.continue_from == f"/{now.follows}/checkpoints/a"
        assert (now.score, now.value, now.seconds) == (None, None, 0.0)
    assert after(members) == following
    assert len({str(after(members, seed=seed)) for seed in range(5)}) == 5


def test_values_are_perturbed_within_their_spaces() -> None:
    leader = Member("trial-00000", {RATE.name: 0.09, DROPOUT.name: 0.2}, score=0.9)
    weak = Member("trial-00001", {RATE.name: 0.001, DROPOUT.name: 0.0}, score=0.1)
    followers = [after((leader, weak), seed=seed)[1].values for seed in range(200)]
    rates = [values[RATE.name] for values in followers]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    lower, upper = sum(rate == pytest.approx(0.072) for rate in rates), rates.count(0.1)
    assert lower + upper == pytest.approx(150, abs=20)  # the others are drawn anew
    assert lower == pytest.approx(upper, abs=35)
    assert {values[DROPOUT.name] for values in followers} == {0.0, 0.1, 0.2}
    assert sum(values[DROPOUT.name] == 0.0 for values in followers) < 40  # two steps away: drawn anew alone


@pytest.mark.parametrize(
    ("scores", "following"),
    [
        ((0.9, None, 0.5, 0.6), [1]),
        ((None, None, 0.5, None), [0, 1, 3]),
        ((None, None), []),
        ((0.5, float("nan"), 0.6, 0.7), [1]),
        ((0.5, 0.5), [1]),
        ((float("nan"), float("nan"), float("nan"), 0.5), [0, 1, 2]),
        ((float("nan"), float("inf"), None, None), []),
    ],
)
def test_members_without_a_finite_score_follow(scores: tuple[float | None, ...], following: list[int]) -> None:
    now = after(scored(*scores))
    assert [place for place, member in enumerate(now) if member.follows] == following


def test_the_strongest_that_has_a_checkpoint_is_followed() -> None:
    members = scored(0.9, 0.1, 0.5, 0.6)
    following = after(members, missing=("trial-00000",))
    assert [member.follows for member in following] == [None, "trial-00003", None, None]
    nobody = after(members, missing=tuple(member.run for member in members))
    assert [member.follows for member in nobody] == [None] * 4
    weak = after(scored(0.9, 0.1), missing=("trial-00000",))
    assert [member.follows for member in weak] == [None, None]  # the weak one leads, and nobody is weaker


def test_a_low_loss_is_strong() -> None:
    members = scored(0.1, 0.9)
    now = next_generation(members, 2, 3, {"trial-00000": "a", "trial-00001": "b"}, SPACES, "min", 0)
    assert [member.follows for member in now] == [None, "trial-00000"]
    assert now[1].run == "trial-00001-g2"


def test_generations_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    assert population.read(folder) == []
    generations = [scored(0.5, 0.1), after(scored(0.5, 0.1))]
    population.write(folder, generations)
    assert population.read(folder) == generations
    content = folder.read_bytes("population.json")
    folder.write_bytes("population.json", content[:-20])
    with pytest.raises(ValueError, match=r"population\.json is damaged"):
        population.read(folder)
