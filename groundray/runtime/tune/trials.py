"""Runs a sweep with Ray Tune: each trial is a training run that Tune starts, compares and stops.

A trial with one worker trains in its own process, a trial with more in a nested Ray Train run. Both report each
validation to Tune. A restarted trial resumes as any run does, and first reports its earlier epochs, which ASHA counts
once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from groundray import interrupts
from groundray.config import Settings, SettingsError
from groundray.runtime import cluster, compat
from groundray.runtime.data.feature_tasks import make_features
from groundray.runtime.nodes import Node, accepting_nodes, bundle, described, places
from groundray.runtime.train import launch
from groundray.runtime.train.resources import MIN_DATA_CPUS, min_bundles, wait_until
from groundray.runtime.tune import population
from groundray.runtime.tune.population import Generation
from groundray.runtime.tune.population_search import (
    BEST,
    CONTINUE_FROM,
    EPOCH,
    FOLLOWS,
    GENERATION,
    MEMBER,
    METRIC,
    RUN,
    SINCE,
    UNTIL,
    PopulationSearch,
    checkpoint_after,
)
from groundray.runtime.tune.results import State, Trial
from groundray.runtime.tune.search_space import Space
from groundray.runtime.tune.spec import SEED, STATE, Sweep, describe_values
from groundray.tracking.store import written_uri
from groundray.tracking.tracker import Tracker
from groundray.training import history, preflight
from groundray.training.endings import Stopped
from groundray.training.events import EpochDone, Event
from groundray.training.feature_uses import release
from groundray.training.identity import Identity
from groundray.training.layout import features_folder
from groundray.training.preflight import CheckedRun

LOG = logging.getLogger(__name__)
ENDED = "ended"
SCORE = "score/"  # begins the names of all metrics, where there are several
GRACE = 1 / 4  # fraction of the epochs before which ASHA stops no trial
GRACE_EPOCHS = 2  # at least: after one epoch, ranks of trials are chance
REDUCTION = 3  # one of so many trials continues at each of ASHA's rungs
PAUSED = "stopped"  # why a member of a population ends before its stage does, as any run that resumes
DRIVER_CPUS = 0.01  # CPUs of a trial that only drives its workers
ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # time for a stopped trial to close its MLflow run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run writes its own history
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables of Tune
}


@dataclass(frozen=True)
class TrialResources:
    """The resources of a trial, including the CPUs that Ray Data needs for it.

    Attributes:
        workers: number of parts of a trial that may be on different nodes.
        worker_cpus: CPUs of such a part, which has a GPU if the trial has any.
        gpu_type: type of the GPUs, by Ray's name; None for any.
    """

    cpus: float
    gpus: int
    workers: int
    worker_cpus: float
    gpu_type: str | None = None

    @staticmethod
    def of(sweep: Sweep) -> TrialResources:
        """Return the resources of one trial of a sweep."""
        scaling = sweep.settings.scaling
        gpus = max(1, scaling.min_workers) if scaling.use_gpu else 0
        if scaling.max_workers > 1:
            cpus = scaling.min_workers * (scaling.cpus_per_worker + MIN_DATA_CPUS)
            return TrialResources(cpus, gpus, scaling.min_workers, scaling.cpus_per_worker, scaling.accelerator_type)
        return TrialResources(sweep.cpus, gpus, 1, sweep.cpus, scaling.accelerator_type)

    def concurrent(self, wanted: int | None, nodes: Sequence[Node]) -> int:
        """Return the number of concurrent trials on a cluster: `wanted`, or as many as fit.

        Raises:
            SettingsError: not one trial fits, or not as many as wanted.
        """
        gpus = sum(node.gpus for node in nodes if node.has_type(self.gpu_type))
        cluster = Node("", sum(node.cpus for node in nodes), gpus)
        most = cluster.places(self.cpus, self.gpus)
        kind = f"{self.gpu_type} GPUs" if self.gpu_type else "GPUs"
        takes = f"a trial takes {self.cpus:g} CPUs and {self.gpus} {kind}, the cluster has {cluster.cpus:g} and "
        takes += f"{cluster.gpus:g}"
        if most and len(nodes) > 1:
            most = min(most, places(nodes, self.worker_cpus, min(1, self.gpus), self.gpu_type) // self.workers)
            takes += f" on nodes with {described(nodes)}"
        if not most:
            raise SettingsError(
                f"{takes}: use fewer workers a trial (scaling.num_workers), fewer CPUs each "
                "(scaling.cpus_per_worker), or a larger cluster"
            )
        if wanted is not None and wanted > most:
            raise SettingsError(f"--max-concurrent: expected at most {most}, got {wanted}: {takes}")
        return wanted or most


@dataclass(frozen=True)
class TrialContext:
    """The context of a trial's process, besides its values.

    Attributes:
        cpu_fraction: fraction of the cluster's CPUs that a trial may use.
        parent: id of the sweep; None if it is not tracked.
        tracked_at: URI of the MLflow store, without secrets: Tune writes this context to the sweep's folder.
    """

    sweep: Sweep
    cpu_fraction: float
    parent: str | None
    tracked_at: str

    def settings(self, config: dict[str, Any], trial_id: str) -> Settings:
        """Return a trial's settings. A trial with one worker trains in its process, without Ray Train."""
        own = {SEED, *(space.name for space in self.sweep.spaces)}
        values = {name: value for name, value in config.items() if name in own}
        name = config.get(RUN) or _run_name(trial_id)
        settings = self.sweep.settings_of(values, name, config.get(CONTINUE_FROM))
        tracking = settings.tracking.model_copy(update={"uri": self.tracked_at})
        settings = settings.model_copy(update={"tracking": tracking})
        if settings.scaling.max_workers > 1:
            return settings
        scaling = settings.scaling.model_copy(update={"num_workers": 0, "chunks": settings.chunks})
        return settings.model_copy(update={"scaling": scaling})

    def tracker(self, run: CheckedRun, claimed: Identity) -> Tracker | None:
        """Return the tracker of a trial, a child of the sweep's MLflow run; None if the sweep is not tracked. What it
        cannot log, the sweep logs at its end."""
        return Tracker(run.settings, run.folder, claimed, lambda _: None, self.parent) if self.parent else None


@contextlib.contextmanager
def connected(sweep: Sweep, verbose: bool, tell: Callable[[str], None]) -> Iterator[int]:
    """Connect this process to Ray inside the context. Yields the number of concurrent trials.

    Args:
        tell: receives notes.

    Raises:
        SettingsError: the cluster has too few resources.
        OSError: there is no cluster at `RAY_ADDRESS`.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    nested = sweep.settings.scaling.max_workers > 1
    # Ray Train asks the dashboard whether the driver of a nested run is alive before it frees the workers' resources
    with cluster.connect(verbose=verbose, dashboard=nested):
        room, settings = TrialResources.of(sweep), sweep.settings

        def concurrent() -> int:
            return room.concurrent(sweep.max_concurrent, accepting_nodes())

        trial = min_bundles(settings) if nested else [bundle(room.cpus, room.gpus, room.gpu_type)]
        yield wait_until(
            concurrent,
            trial * (sweep.max_concurrent or 1),
            settings.scaling.wait_minutes,
            lambda text: tell(f"note  {text}"),
        )


@contextlib.contextmanager
def shared_features(sweep: Sweep, observe: Callable[[Event], None]) -> Iterator[None]:
    """Make the trunk features that the trials share, and keep them inside the context: the sweep uses them."""
    values = {space.name: space.values[0] for space in sweep.spaces} | {SEED: sweep.settings.run.seed}
    try:
        make_features(preflight.check(sweep.settings_of(values, "trial")), observe, sweep.folder)
        yield
    finally:
        release(features_folder(sweep.settings), sweep.folder)


def run_sweep(
    sweep: Sweep, concurrent: int, parent: str | None, resume: bool, tell: Callable[[str], None]
) -> tuple[list[Trial], int]:
    """Run all trials that have not finished. Returns the state of each trial, and the number of the signal that
    interrupted the sweep (SIGINT, SIGTERM or SIGHUP) or 0.

    Args:
        concurrent: number of concurrent trials.
        tell: receives a line about each validation and end of a trial.
    """
    # Tune starts each trial in its own working folder
    sweep = replace(sweep, settings=sweep.settings.absolute())
    context = TrialContext(sweep, 1 / concurrent, parent, written_uri(sweep.settings))
    trainable = _trainable(context)
    if sweep.search == "pbt" and resume:
        sweep.folder.delete(STATE)  # the population is read from its own file
    tuner = _restored(sweep, trainable, tell) if resume and sweep.search != "pbt" else None
    tuner = tuner or tune.Tuner(
        trainable,
        param_space=_param_space(sweep),
        tune_config=tune.TuneConfig(
            # Tune compares trials by one metric; several are compared by the search
            metric=None if sweep.others else METRIC,
            mode=None if sweep.others else sweep.metric.mode,
            search_alg=_search_algorithm(sweep, concurrent),
            scheduler=_scheduler(sweep),
            num_samples=_most_trials(sweep),
            # the others limit themselves
            max_concurrent_trials=concurrent if sweep.search in ("tpe", "pbt") else None,
            # reuse a trial's process and its imports, unless it drives workers, which end with the process
            reuse_actors=sweep.settings.scaling.max_workers < 2,
            trial_name_creator=name_of,
            trial_dirname_creator=_state_name,
        ),
        run_config=tune.RunConfig(
            name=STATE,
            **launch.storage_arguments(sweep.folder),
            callbacks=[_LogValidations(sweep)],
            failure_config=tune.FailureConfig(max_failures=sweep.settings.scaling.max_failures),
            verbose=0,
        ),
    )
    with _interruptible() as received, _forward_log(tell) as heard:
        grid = tuner.fit()
    found = compat.trials_of(grid)
    trials = _members(sweep, found) if sweep.search == "pbt" else [_result_of(sweep, trial) for trial in found]
    if received:  # Tune has stopped those that were running
        trials = [replace(trial, state="unfinished") if trial.name in heard.running else trial for trial in trials]
    return trials, received[0] if received else 0


def _restored(sweep: Sweep, trainable: Any, tell: Callable[[str], None]) -> tune.Tuner | None:
    """Return the tuner of an interrupted sweep, or None if it had not started or its state is damaged."""
    state = sweep.folder / STATE
    filesystem = None if state.local else state.filesystem
    if not tune.Tuner.can_restore(state.path, filesystem):
        return None
    try:
        return tune.Tuner.restore(
            state.path,
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            param_space=_param_space(sweep),
            storage_filesystem=filesystem,
        )
    except (EOFError, UnpicklingError) as error:
        tell(f"note  {state} is damaged ({error}): trials are drawn again, and resume where they have a checkpoint")
        sweep.folder.delete(STATE)
        return None


def _most_trials(sweep: Sweep) -> int:
    """Return how many trials Tune takes from the search at most."""
    match sweep.search:
        case "grid":
            return 1
        case "pbt":
            # and one more, so that the search is asked again after the last generation, which it then ends
            return sweep.num_samples * len(sweep.generation_ends) + 1
        case _:
            return sweep.num_samples


def name_of(trial: TuneTrial) -> str:
    """Return the name of a trial's run: `trial-` and the number that its searcher gives it."""
    return trial.config.get(RUN) or _run_name(trial.trial_id)


def _state_name(trial: TuneTrial) -> str:
    """Return the name of the folder with Tune's state of a trial."""
    return f"{name_of(trial)}-{trial.config[GENERATION]}" if RUN in trial.config else name_of(trial)


def _run_name(trial_id: str) -> str:
    return f"trial-{trial_id.rpartition('_')[2]}"


def _trainable(context: TrialContext) -> Any:
    nested = context.sweep.settings.scaling.max_workers > 1
    one = TrialResources.of(context.sweep)
    # a nested run requests its workers' resources itself, and Tune accepts no empty bundle
    resources = {"CPU": DRIVER_CPUS} if nested else bundle(one.cpus, one.gpus, one.gpu_type)
    return tune.with_resources(
        functools.partial(_train_trial, context=context), tune.PlacementGroupFactory([resources])
    )


def _train_trial(config: dict[str, Any], context: TrialContext) -> None:
    """Train in a trial's own process, and report the validation at the end of each epoch to Tune.

    Those within an epoch count for the best. A validation that ends the stage early is reported when the trial has its
    model: the scheduler may stop a trial at each report. A member of a population stops at the end of its generation,
    and resumes as any run does when the next one begins.
    """
    sweep = context.sweep
    since, until = config.get(SINCE, 0), config.get(UNTIL, sweep.epochs)
    settings = context.settings(config, str(tune.get_context().get_trial_id()))
    run = preflight.check(settings)
    tracker = context.tracker(run, preflight.claim(run))
    best: dict[str, Mapping[str, float]] = {}  # metrics of the best validation so far, by stage
    last: list[dict[str, Any]] = []
    paused: list[str] = []
    patience = settings.stage(sweep.last_stage).patience

    def observe(event: Event) -> None:
        if tracker:
            tracker.observe(event)
        report(event)
        if isinstance(event, EpochDone) and event.stage == sweep.last_stage and event.ends_epoch:
            paused.extend([PAUSED] if until == event.epoch + 1 < sweep.epochs else [])

    def report(event: Event) -> None:
        if not isinstance(event, EpochDone):
            return
        if event.best or event.stage not in best:
            best[event.stage] = event.metrics
        if event.stage != sweep.last_stage:
            return
        told = {EPOCH: event.epoch + 1} | _scores(sweep, event, best)
        if patience and event.stale >= patience:
            last[:] = [told | {ENDED: True}]
        elif event.ends_epoch and since <= event.epoch < until:
            tune.report(told)

    result: dict[str, Any] | None = None
    try:
        for event, _ in history.read(run.folder, lambda text: None):
            report(event)
        if until == sweep.epochs or not checkpoint_after(run.folder, sweep.last_stage, until):
            result = launch.fit(
                run, observe, get_stop_reason=lambda: "".join(paused[:1]), cpu_fraction=context.cpu_fraction
            )
        else:
            paused.append(PAUSED)
        for told in last:
            tune.report(told)
    except Stopped:
        if not paused:
            raise
    finally:
        if tracker:
            tracker.close(result, "FINISHED" if result else "KILLED" if paused else "FAILED")


def _scores(sweep: Sweep, event: EpochDone, best: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return what a validation of the last stage is to Tune.

    Args:
        best: metrics of the best validation so far, by stage.
    """
    first = sweep.metric
    current = event.metrics if event.stage == first.stage else best[first.stage]
    scores = {METRIC: current[first.name], BEST: best[first.stage][first.name]}
    if sweep.others:
        scores |= {f"{SCORE}{metric}": best[metric.stage][metric.name] for metric in sweep.metrics}
    return scores


def _param_space(sweep: Sweep) -> dict[str, Any]:
    if sweep.search == "pbt":  # which gives each trial all of its configuration
        return {}
    swept = {space.name: _domain(space, sweep.search) for space in sweep.spaces}
    first = sweep.settings.run.seed
    seeds = list(range(first, first + sweep.seeds))
    return swept | {SEED: first if sweep.search == "tpe" else tune.grid_search(seeds)}


def _domain(space: Space, search: str) -> Any:
    if space.kind == "choice":
        return tune.grid_search(list(space.values)) if search == "grid" else tune.choice(list(space.values))
    return {"uniform": tune.uniform, "loguniform": tune.loguniform}[space.kind](*space.values)


def _search_algorithm(sweep: Sweep, concurrent: int) -> Searcher | SearchAlgorithm:
    seed = sweep.settings.run.seed
    if sweep.search == "pbt":
        return PopulationSearch(sweep)
    if sweep.search == "tpe":
        if not sweep.others:
            return OptunaSearch(seed=seed)
        names = [f"{SCORE}{metric}" for metric in sweep.metrics]
        return OptunaSearch(metric=names, mode=[metric.mode for metric in sweep.metrics], seed=seed)
    return BasicVariantGenerator(max_concurrent=concurrent, constant_grid_search=True, random_state=seed)


def _scheduler(sweep: Sweep) -> TrialScheduler:
    if not sweep.early_stopping:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=EPOCH,
        max_t=sweep.epochs + 1,  # a trial that reaches the last epoch stops and exports its model
        grace_period=max(GRACE_EPOCHS, round(sweep.epochs * GRACE)),
        reduction_factor=REDUCTION,
    )


class _LogValidations(tune.Callback):
    """Logs the validations of all trials. Tune pickles its callbacks, so it uses a module's logger."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        started = f"{name_of(trial)}  starts  {_described(trial)}{_beginning(trial)}"
        LOG.info(started, extra={"starts": name_of(trial)})

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        sweep = self._sweep
        if sweep.others:
            measured = ", ".join(f"{metric} {result[f'{SCORE}{metric}']:.4g}" for metric in sweep.metrics)
        else:
            measured = f"{sweep.metric.name} {result[METRIC]:.4g}"
        LOG.info(f"{name_of(trial)}  epoch {result[EPOCH]}/{sweep.epochs}  {measured}  ({_described(trial)})")

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        until = trial.config.get(UNTIL, self._sweep.epochs)
        paused = until < self._sweep.epochs and (trial.last_result or {}).get(EPOCH) == until
        ended = f"waits after epoch {until}" if paused else _ended(self._sweep, trial)
        LOG.info(f"{name_of(trial)}  {ended}", extra={"ends": name_of(trial)})

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        LOG.info(f"{name_of(trial)}  failed: {_error(trial)}", extra={"ends": name_of(trial)})


def _described(trial: TuneTrial) -> str:
    """Format a trial's values."""
    return describe_values({name: value for name, value in trial.config.items() if name not in MEMBER})


def _beginning(trial: TuneTrial) -> str:
    """Return whose training a trial takes up, for its line of log; empty for none."""
    leader = trial.config.get(FOLLOWS)
    return f", takes up {leader}" if leader else ""


def _members(sweep: Sweep, found: Sequence[TuneTrial]) -> list[Trial]:
    """Return the runs of a population. One whose member follows another by now was stopped early."""
    generations = _with_causes(sweep, found)
    last = {name_of(trial): trial for trial in found if trial.config[GENERATION] == len(generations) - 1}
    runs: dict[str, Trial] = {}
    for generation in generations:
        now = generation is generations[-1]
        for member in generation:
            tuned = last.get(member.run) if now else None
            state: State = "unfinished" if now else "stopped early"
            if tuned and (len(generations) == len(sweep.generation_ends) or tuned.status == TuneTrial.ERROR):
                state = _state(sweep, tuned)
            if member.error and state != "finished":
                state = "failed"
            # the file has what a generation's members came to when all of them have ended
            result = (tuned.last_result if tuned else None) or {}
            ended = member.score is not None or not tuned
            runs[member.run] = Trial(
                member.run,
                member.values,
                sweep.settings.run.seed,
                state,
                result.get(BEST, member.value),
                result.get(EPOCH, member.epochs),
                member.seconds + (0.0 if ended else result.get("time_total_s", 0.0)),
                "" if state == "finished" else (tuned and _error(tuned)) or member.error,
                follows=member.follows or "",
                since=member.since,
                continue_from=member.continue_from,
            )
    return list(runs.values())


def _with_causes(sweep: Sweep, found: Sequence[TuneTrial]) -> list[Generation]:
    """Return the generations of a population, with the causes of failures that Tune knows, and write these."""
    causes = {(trial.config[GENERATION], name_of(trial)): cause for trial in found if (cause := _error(trial))}
    generations = population.read(sweep.folder)
    known = [
        tuple(replace(one, error=causes.get((number, one.run), one.error)) if one.error else one for one in generation)
        for number, generation in enumerate(generations)
    ]
    if known != generations:
        population.write(sweep.folder, known)
    return known


def _result_of(sweep: Sweep, trial: TuneTrial) -> Trial:
    values = {name: value for name, value in trial.config.items() if name != SEED}
    last = trial.last_result or {}
    return Trial(
        name=name_of(trial),
        values=values,
        seed=trial.config[SEED],
        state=_state(sweep, trial),
        value=last.get(BEST),
        epochs=last.get(EPOCH, 0),
        seconds=last.get("time_total_s", 0.0),
        error=_error(trial),
        scores={
            str(metric): last[key] for metric in sweep.metrics if sweep.others and (key := f"{SCORE}{metric}") in last
        },
    )


def _state(sweep: Sweep, trial: TuneTrial) -> State:
    if trial.status == TuneTrial.ERROR:
        return "failed"
    if trial.status != TuneTrial.TERMINATED:
        return "unfinished"
    return _ended(sweep, trial)


def _ended(sweep: Sweep, trial: TuneTrial) -> State:
    last = trial.last_result or {}
    return "finished" if last.get(ENDED) or last.get(EPOCH) == sweep.epochs else "stopped early"


def _error(trial: TuneTrial) -> str:
    error = trial.get_error()
    text = str(getattr(error, "cause", None) or error or "").strip()
    return text.splitlines()[-1] if text else ""


class _LogForwarder(logging.Handler):
    """Forwards the callback's lines to `tell`, and keeps the names of running trials."""

    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self._tell = tell
        self.running: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())
        match vars(record):
            case {"starts": name}:
                self.running.add(name)
            case {"ends": name}:
                self.running.discard(name)


@contextlib.contextmanager
def _forward_log(tell: Callable[[str], None]) -> Iterator[_LogForwarder]:
    """Forward the callback's lines to `tell` inside the context."""
    heard = _LogForwarder(tell)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    LOG.addHandler(heard)
    try:
        yield heard
    finally:
        LOG.removeHandler(heard)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Let Tune save its state and stop at a signal that asks to end; a second stops at once. Yields those received."""
    received: list[int] = []

    def receive(number: int) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGUSR1)  # Tune handles it as a request to stop

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with interrupts.routed(receive):
        yield received
