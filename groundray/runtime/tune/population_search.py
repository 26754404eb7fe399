"""Population-based training as a search of Ray Tune: a trial of Tune is what one member trains in one generation.

Tune places, starts and repeats trials. What they train comes from population.py, and is read from the sweep's folder,
so that no state of Tune is needed to resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ray.tune.search import Searcher

from groundray.data.plan import Cursor
from groundray.runtime.tune import population
from groundray.runtime.tune.population import Generation, Member
from groundray.runtime.tune.spec import SEED, TRIALS, Sweep
from groundray.storage.folder import Folder
from groundray.training.checkpoint import CheckpointStore

# keys of what Tune reports of a validation
EPOCH, METRIC, BEST = "epoch", "metric", "best"
# keys of a trial's configuration besides its values
RUN, GENERATION, CONTINUE_FROM, SINCE, UNTIL = "run", "generation", "continue_from", "since", "until"
FOLLOWS = "follows"  # whose training the trial takes up, in the generation in which it does; else None
MEMBER = (RUN, GENERATION, CONTINUE_FROM, SINCE, UNTIL, FOLLOWS)
FAILED = "failed"  # what is known of a member whose trial raised: Tune does not tell a search why


class PopulationSearch(Searcher):
    """Suggests the members of a generation, and the next generation when all of them have ended."""

    def __init__(self, sweep: Sweep):
        super().__init__(metric=METRIC, mode=sweep.metric.mode)
        self._sweep = sweep
        self._generations = population.read(sweep.folder)
        if not self._generations:
            self._begin(population.first_generation(sweep.spaces, sweep.num_samples, sweep.settings.run.seed))
        self._restart()

    def _begin(self, generation: Generation) -> None:
        population.write(self._sweep.folder, [*self._generations, generation])
        self._generations.append(generation)

    def _restart(self) -> None:
        """Let all members of the last generation train; what they have done already is not done again."""
        self._waiting = list(range(self._sweep.num_samples))
        self._running: dict[str, int] = {}
        self._ended: dict[int, Member] = {}
        self._is_last = False

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the configuration of the next trial, None while others train, or FINISHED.

        A generation ends here, when the next is asked for. What `on_trial_complete` raises, Tune takes for a failure of
        the trial; what is raised here ends the sweep, and `--resume` repeats the generation's end.

        Raises:
            OSError: the storage cannot be read or written.
        """
        if len(self._ended) == self._sweep.num_samples and not self._is_last:
            self._end_generation(len(self._generations) - 1)
        if not self._waiting:
            return cast(Any, Searcher.FINISHED) if self._is_last else None
        place, number = self._waiting.pop(0), len(self._generations) - 1
        self._running[trial_id] = place
        member = self._generations[-1][place]
        since = self._sweep.generation_ends[number - 1] if number else 0
        return {
            **member.values,
            SEED: self._sweep.settings.run.seed,
            RUN: member.run,
            GENERATION: number,
            CONTINUE_FROM: member.continue_from,
            SINCE: since,
            UNTIL: self._sweep.generation_ends[number],
            FOLLOWS: member.follows if member.since == since else None,
        }

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        if (place := self._running.pop(trial_id, None)) is None:
            return
        member, until = self._generations[-1][place], self._sweep.generation_ends[len(self._generations) - 1]
        result = result or {}
        epochs = result.get(EPOCH, 0)
        if error:
            self._ended[place] = replace(member, score=None, error=FAILED)
        elif epochs < until:  # it returned, but its last validations are missing: without them it has no score
            self._ended[place] = replace(
                member, score=None, error=f"expected the validation of epoch {until}, got none after epoch {epochs}"
            )
        else:
            self._ended[place] = replace(
                member,
                score=result[METRIC],
                value=result[BEST],
                epochs=epochs,
                seconds=member.seconds + result.get("time_total_s", 0.0),
                error="",
            )

    def _end_generation(self, number: int) -> None:
        sweep = self._sweep
        ended = tuple(self._ended[place] for place in range(sweep.num_samples))
        self._generations[-1] = ended
        if number + 1 == len(sweep.generation_ends) or all(member.score is None for member in ended):
            population.write(sweep.folder, self._generations)
            self._is_last = True
            return
        since, stage = sweep.generation_ends[number], sweep.metric.stage
        found = {member.run: checkpoint_after(sweep.folder / TRIALS / member.run, stage, since) for member in ended}
        checkpoints = {run: checkpoint for run, checkpoint in found.items() if checkpoint}
        seed, mode = sweep.settings.run.seed, sweep.metric.mode
        self._begin(population.next_generation(ended, number + 1, since, checkpoints, sweep.spaces, mode, seed))
        self._restart()

    def save(self, checkpoint_path: str) -> None:
        """Make an empty file, which Tune moves: what there is to resume from is in the sweep's folder."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: Tune restores a search from pickles, and a sweep with `--resume` begins from its own file instead."""
        raise NotImplementedError("a population is read from the sweep's folder")


def checkpoint_after(run: Folder, stage: str, epochs: int) -> str | None:
    """Return the path or URL of a run's checkpoint with so many epochs of a stage done; None if it has none."""
    store = CheckpointStore.at(run)
    for checkpoint in store.committed(stage):
        if checkpoint.validated and checkpoint.cursor == Cursor(epochs):
            return str(store.folder / checkpoint.name)
    return None
