"""A sweep on Ray Tune: each trial is a training run of its own, that Tune starts, compares and ends.

A trial of one worker trains in its own process, one of many on a nested Ray Train run; both tell Tune of each
validation as they tell a driver. A trial that is started again, by Tune or with the sweep, goes on as every run does,
and tells of its earlier epochs first: ASHA counts each once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from groundray.config import Settings, SettingsError
from groundray.runtime import cluster, compat
from groundray.runtime.data.feature_tasks import make_features
from groundray.runtime.train import launch
from groundray.runtime.train.resources import MIN_DATA_CPUS, min_bundles, wait_until
from groundray.runtime.tune.results import State, Trial
from groundray.runtime.tune.search_space import Space
from groundray.runtime.tune.spec import SEED, STATE, Sweep, describe_values
from groundray.tracking import Tracker, uri_of
from groundray.training import history, layout, preflight
from groundray.training.events import EpochDone, Event
from groundray.training.preflight import CheckedRun

LOG = logging.getLogger(__name__)
EPOCH, METRIC, BEST = "epoch", "metric", "best"
GRACE = 1 / 4  # of the epochs, before which ASHA ends no trial
REDUCTION = 3  # of as many trials at one of ASHA's rungs, the best goes on
DRIVER_CPUS = 0.01  # of a trial that only drives its workers
ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",  # for which a trial that is ended may close its MLflow run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run has a history of its own
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints tables of its own
}


@dataclass(frozen=True)
class TrialResources:
    """What a trial takes of the cluster, with what Ray Data needs to feed it."""

    cpus: float
    gpus: int

    @staticmethod
    def of(sweep: Sweep) -> TrialResources:
        """The room that a trial takes."""
        scaling = sweep.settings.scaling
        nested = scaling.max_workers > 1
        cpus = scaling.min_workers * (scaling.cpus_per_worker + MIN_DATA_CPUS) if nested else sweep.cpus
        return TrialResources(cpus, max(1, scaling.min_workers) if scaling.use_gpu else 0)

    def concurrent(self, wanted: int | None, cluster_cpus: float, cluster_gpus: float) -> int:
        """How many trials run at once on such a cluster: as many as are wanted, or as fit.

        Raises:
            SettingsError: there is no room for one, or for so many.
        """
        rounding = 1e-9
        most = int(min(cluster_cpus / self.cpus + rounding, cluster_gpus / self.gpus if self.gpus else math.inf))
        takes = f"a trial takes {self.cpus:g} CPUs and {self.gpus} GPUs, the cluster has {cluster_cpus:g} and "
        takes += f"{cluster_gpus:g}"
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
    """What a trial's process needs to know, besides its values.

    Attributes:
        share: of the cluster, that a trial may take.
        parent: the sweep's MLflow run, where it is tracked.
        tracked_at: by which MLflow.
    """

    sweep: Sweep
    share: float
    parent: str | None
    tracked_at: str

    def settings(self, values: dict[str, Any], name: str) -> Settings:
        """A trial's settings; a trial of one worker needs no Ray Train."""
        settings = self.sweep.settings_of(values, name)
        tracking = settings.tracking.model_copy(update={"uri": self.tracked_at})
        settings = settings.model_copy(update={"tracking": tracking})
        if settings.scaling.max_workers > 1:
            return settings
        scaling = settings.scaling.model_copy(update={"num_workers": 0, "chunks": settings.chunks})
        return settings.model_copy(update={"scaling": scaling})

    def tracker(self, run: CheckedRun, warn: Callable[[str], None]) -> Tracker | None:
        """Of a trial, below the sweep's own MLflow run."""
        return Tracker.of(run, warn, self.parent) if self.parent else None


@contextlib.contextmanager
def connected(sweep: Sweep, verbose: bool, tell: Callable[[str], None]) -> Iterator[int]:
    """Meanwhile this process is connected to Ray; how many trials run at once.

    Args:
        tell: takes lines for a person.

    Raises:
        SettingsError: the cluster has no room.
        OSError: there is no cluster at `RAY_ADDRESS`.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    nested = sweep.settings.scaling.max_workers > 1
    # Ray Train asks the dashboard whether the driver of a nested run still lives, before it frees the workers' places
    with cluster.connect(verbose=verbose, dashboard=nested):
        room, settings = TrialResources.of(sweep), sweep.settings

        def concurrent() -> int:
            has = ray.cluster_resources()
            return room.concurrent(sweep.max_concurrent, has.get("CPU", 0), has.get("GPU", 0))

        trial = (
            min_bundles(settings) if nested else [{"CPU": room.cpus} | ({"GPU": float(room.gpus)} if room.gpus else {})]
        )
        yield wait_until(
            concurrent,
            trial * (sweep.max_concurrent or 1),
            settings.scaling.wait_minutes,
            lambda text: tell(f"note  {text}"),
        )


def make_shared_features(sweep: Sweep, observe: Callable[[Event], None]) -> None:
    """Make the trunk features that the trials share, where the first trial would make them."""
    values = {space.name: space.values[0] for space in sweep.spaces} | {SEED: sweep.settings.run.seed}
    make_features(preflight.check(sweep.settings_of(values, "trial")), observe)


def run_sweep(
    sweep: Sweep, concurrent: int, parent: str | None, resume: bool, tell: Callable[[str], None]
) -> tuple[list[Trial], int]:
    """Run all trials that are not done yet: how all ended, or how far they are, and the number of the signal that came
    meanwhile (Ctrl-C or SIGTERM), 0 if none did.

    Args:
        concurrent: trials at once.
        tell: takes lines for a person.
    """
    # Tune starts a trial in a folder of its own
    sweep = replace(sweep, settings=sweep.settings.absolute())
    context = TrialContext(sweep, 1 / concurrent, parent, uri_of(sweep.settings))
    trainable = _trainable(context)
    tuner = _restored(sweep, trainable, tell) if resume else None
    tuner = tuner or tune.Tuner(
        trainable,
        param_space=_param_space(sweep),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=sweep.metric.mode,
            search_alg=_search_algorithm(sweep, concurrent),
            scheduler=_scheduler(sweep),
            num_samples=1 if sweep.search == "grid" else sweep.num_samples,
            max_concurrent_trials=concurrent if sweep.search == "tpe" else None,  # the others count for themselves
            # a process that has imported everything trains the next; one that drives workers ends with them
            reuse_actors=sweep.settings.scaling.max_workers < 2,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
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
    trials = [_result_of(sweep, one) for one in compat.trials_of(grid)]
    if received:  # Tune has ended those that were under way
        trials = [replace(one, state="unfinished") if one.name in heard.under_way else one for one in trials]
    for trial in trials:
        settings = context.settings(trial.all_values, trial.name)
        begun = trial.state != "finished" and layout.folder_of(settings).exists(layout.CONFIG)
        if begun and (
            tracker := context.tracker(preflight.check(settings), tell)
        ):  # whoever ended it left it as it was
            tracker.close(None, "FAILED" if trial.state == "failed" else "KILLED")
    return trials, received[0] if received else 0


def _restored(sweep: Sweep, trainable: Any, tell: Callable[[str], None]) -> tune.Tuner | None:
    """Tune as it was when the sweep was interrupted; None where it had not begun, or its state is damaged."""
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
        tell(f"note  {state} is damaged ({error}): trials are drawn again, and go on where they have a checkpoint")
        sweep.folder.delete(STATE)
        return None


def name_of(trial: TuneTrial) -> str:
    """Of a trial's run: `trial-00003`, or what its searcher numbers it by."""
    return _run_name(trial.trial_id)


def _run_name(trial_id: str) -> str:
    return f"trial-{trial_id.rpartition('_')[2]}"


def _trainable(context: TrialContext) -> Any:
    nested = context.sweep.settings.scaling.max_workers > 1
    one = TrialResources.of(context.sweep)
    # a nested run asks for its workers' places itself, and Tune takes no empty bundle
    bundle: dict[str, int | float] = {"CPU": DRIVER_CPUS if nested else one.cpus}
    if one.gpus and not nested:
        bundle["GPU"] = one.gpus
    return tune.with_resources(functools.partial(_train_trial, context=context), tune.PlacementGroupFactory([bundle]))


def _train_trial(values: dict[str, Any], context: TrialContext) -> None:
    """In a trial's own process: its training run, each validation reported to Tune."""
    metric = context.sweep.metric
    settings = context.settings(values, _run_name(str(tune.get_context().get_trial_id())))
    run = preflight.check(settings)
    preflight.claim(run)
    tracker = context.tracker(run, lambda text: None)
    best: list[float] = []

    def observe(event: Event) -> None:
        if tracker:
            tracker.observe(event)
        report(event)

    def report(event: Event) -> None:
        if isinstance(event, EpochDone) and event.stage == metric.stage:
            value = event.metrics[metric.name]
            if event.best or not best:
                best[:] = [value]
            tune.report({EPOCH: event.epoch + 1, METRIC: value, BEST: best[0]})

    result: dict[str, Any] | None = None
    try:
        for event, _ in history.read(run.folder, lambda text: None):
            report(event)
        result = launch.fit(run, observe, share=context.share)
    finally:
        if tracker:
            tracker.close(result, "FINISHED" if result else "FAILED")


def _param_space(sweep: Sweep) -> dict[str, Any]:
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
    if sweep.search == "tpe":
        return OptunaSearch(seed=seed)
    return BasicVariantGenerator(max_concurrent=concurrent, constant_grid_search=True, random_state=seed)


def _scheduler(sweep: Sweep) -> TrialScheduler:
    if not sweep.early_stopping:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=EPOCH,
        max_t=sweep.epochs + 1,  # who gets to the last epoch ends by itself, its model exported
        grace_period=max(1, round(sweep.epochs * GRACE)),
        reduction_factor=REDUCTION,
    )


class _LogValidations(tune.Callback):
    """Tells of each validation of each trial, by a logger: Tune keeps its callbacks as pickles."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        LOG.info(f"{name_of(trial)}  starts  {describe_values(trial.config)}", extra={"starts": name_of(trial)})

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        LOG.info(
            f"{name_of(trial)}  epoch {result[EPOCH]}/{self._sweep.epochs}  {self._sweep.metric.name} "
            f"{result[METRIC]:.4g}  ({describe_values(trial.config)})"
        )

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        LOG.info(f"{name_of(trial)}  {_ended(self._sweep, trial)}", extra={"ends": name_of(trial)})

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        LOG.info(f"{name_of(trial)}  failed: {_error(trial)}", extra={"ends": name_of(trial)})


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
    )


def _state(sweep: Sweep, trial: TuneTrial) -> State:
    if trial.status == TuneTrial.ERROR:
        return "failed"
    if trial.status != TuneTrial.TERMINATED:
        return "unfinished"
    return _ended(sweep, trial)


def _ended(sweep: Sweep, trial: TuneTrial) -> State:
    return "finished" if (trial.last_result or {}).get(EPOCH) == sweep.epochs else "stopped early"


def _error(trial: TuneTrial) -> str:
    error = trial.get_error()
    text = str(getattr(error, "cause", None) or error or "").strip()
    return text.splitlines()[-1] if text else ""


class _LogForwarder(logging.Handler):
    """Brings the callback's lines to `tell`, and knows which trials are under way."""

    def __init__(self, tell: Callable[[str], None]):
        super().__init__()
        self._tell = tell
        self.under_way: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())
        match vars(record):
            case {"starts": name}:
                self.under_way.add(name)
            case {"ends": name}:
                self.under_way.discard(name)


@contextlib.contextmanager
def _forward_log(tell: Callable[[str], None]) -> Iterator[_LogForwarder]:
    """Meanwhile the callback's lines come to `tell`."""
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
    """Meanwhile Ctrl-C and SIGTERM let Tune write its state and end, a second one ends it as it is; those received."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGUSR1)  # which Tune listens to, and says nothing else by

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
