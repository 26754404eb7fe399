"""The population of population-based training: what its members train, and whom the weakest follow.

Jaderberg et al. 2017, "Population Based Training of Neural Networks". Every member trains a generation of some epochs.
Then each of the weakest quarter takes up the training of one of the strongest quarter (exploit), with changed values
(explore). What a generation trains is a function of the seed, and of the scores of the generation before it; it is
written to STORAGE/NAME/population.json before it starts, so that a sweep that was killed goes on with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from groundray.runtime.tune.search_space import Space
from groundray.stage.protocol import Direction
from groundray.storage.folder import Folder

POPULATION = "population.json"
QUANTILE = 1 / 4  # the fraction of members that is replaced, and the fraction that is followed
RESAMPLE = 1 / 4  # probability that a value is drawn anew
FACTORS = (0.8, 1.2)  # of a number that is not drawn anew


@dataclass(frozen=True)
class Member:
    """What a member of the population trains in a generation, and what came of it.

    Attributes:
        run: the name of its run, which lasts until it follows another member.
        values: swept settings by dotted name.
        follows: the name of the run whose checkpoint its run began with; None for one that began at the start.
        since: epochs that were done in that checkpoint.
        continue_from: path or URL of that checkpoint.
        score: the metric at the end of the generation; None before, and if it failed.
        value: the metric at the best epoch of its run so far, as `Trial.value`.
        epochs: number of epochs of the stage that its weights have seen.
        seconds: that its run took so far.
        error: why it failed.
    """

    run: str
    values: Mapping[str, Any]
    follows: str | None = None
    since: int = 0
    continue_from: str | None = None
    score: float | None = None
    value: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""


Generation = tuple[Member, ...]


def first_generation(spaces: Sequence[Space], size: int, seed: int) -> Generation:
    """Return the members that start, with values drawn at random."""
    members = []
    for number in range(size):
        random_numbers = random.Random(f"{seed} first {number}")
        members.append(Member(f"trial-{number:05d}", {space.name: _draw(space, random_numbers) for space in spaces}))
    return tuple(members)


def next_generation(
    members: Generation,
    number: int,
    since: int,
    checkpoints: Mapping[str, str],
    spaces: Sequence[Space],
    mode: Direction,
    seed: int,
) -> Generation:
    """Return what the members train after a generation, of which each has a score or has failed.

    A member that failed, or whose score is not finite, follows another wherever one has a checkpoint. The strongest
    that have one are followed, and do not follow. The others go on with what they have.

    Args:
        number: of the new generation; the first has 0.
        since: epochs that are done.
        checkpoints: path of each run's checkpoint at these epochs, by the run's name.
    """
    ranked = sorted(members, key=lambda member: (_loss(member, mode), member.run))
    count = min(max(1, round(len(members) * QUANTILE)), len(members) // 2)
    fit = [member for member in ranked if _loss(member, mode) < math.inf]
    strongest = [member for member in fit if member.run in checkpoints][:count]
    weakest = {member.run for member in ranked[len(members) - count :]} - {member.run for member in strongest}
    staying = {member.run for member in fit} - weakest
    following = []
    for place, member in enumerate(members):
        if not strongest or member.run in staying:
            following.append(replace(member, score=None, error=""))
            continue
        random_numbers = random.Random(f"{seed} generation {number} member {place}")
        leader = random_numbers.choice(strongest)
        values = {space.name: _explored(space, leader.values[space.name], random_numbers) for space in spaces}
        name = f"trial-{place:05d}-g{number}"
        following.append(Member(name, values, leader.run, since, continue_from=checkpoints[leader.run], epochs=since))
    return tuple(following)


def read(folder: Folder) -> list[Generation]:
    """Return the generations of a sweep so far, the last of which may be training; empty if it has not started.

    Raises:
        Damaged: the file is damaged.
    """
    if not folder.exists(POPULATION):
        return []
    repair = "restore it from a copy, or sweep again with another --run.name"
    content = folder.read_sealed(POPULATION, repair=repair)
    return [tuple(Member(**member) for member in members) for members in content["generations"]]


def write(folder: Folder, generations: Sequence[Generation]) -> None:
    """Write the generations of a sweep so far."""
    folder.write_sealed(POPULATION, {"generations": [[asdict(member) for member in one] for one in generations]})


def _loss(member: Member, mode: Direction) -> float:
    if member.score is None or not math.isfinite(member.score):
        return math.inf
    return member.score if mode == "min" else -member.score


def _draw(space: Space, random_numbers: random.Random) -> Any:
    if space.kind == "choice":
        return random_numbers.choice(space.values)
    low, high = space.values
    if space.kind == "uniform":
        return random_numbers.uniform(low, high)
    return math.exp(random_numbers.uniform(math.log(low), math.log(high)))


def _explored(space: Space, value: Any, random_numbers: random.Random) -> Any:
    """Return a value near another: a neighbour among choices, or a number within the range; or one drawn anew."""
    if random_numbers.random() < RESAMPLE:
        return _draw(space, random_numbers)
    if space.kind == "choice":
        place = space.values.index(value) + random_numbers.choice((-1, 1))
        return space.values[min(max(place, 0), len(space.values) - 1)]
    low, high = space.values
    return min(max(value * random_numbers.choice(FACTORS), low), high)
