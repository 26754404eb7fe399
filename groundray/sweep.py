"""`python -m groundray.sweep`: train many runs that differ in a few settings, and find the best of them."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from groundray import config
from groundray.cli.command import EXIT_FAILED, EXIT_SIGNAL, run_command, table_console
from groundray.cli.workdir import go_home
from groundray.config import SettingsError

if TYPE_CHECKING:
    from groundray.runtime.tune.results import Trial
    from groundray.runtime.tune.spec import Sweep

ALIAS = "best"  # of the registered model
INTERRUPTED = "interrupted: rerun the same command with --resume to resume"


@dataclass(frozen=True)
class Defaults:
    """Defaults of a sweep, which its command line overrides.

    Attributes:
        description: for `--help`.
        space: values for `--space`; if empty, the option is required.
        metric: value for `--metric`; if None, the option is required.
        name: the sweep's `--run.name`.
        settings: settings that shorten the demo's runs, used if the command line has no `--config`.
    """

    description: str = "Sweep some settings of a run; each trial is a run of its own."
    space: tuple[str, ...] = ()
    metric: str | None = None
    name: str = "sweep"
    settings: tuple[str, ...] = ()


DEFAULTS = Defaults()


def main(argv: Sequence[str] | None = None, defaults: Defaults = DEFAULTS) -> int:
    """Sweep and return the exit status: 0 a trial has a value, 1 none has, 2 the sweep cannot start, 130, 143
    or 129 stopped by Ctrl-C, SIGTERM or SIGHUP."""
    return run_command(partial(_run, argv, defaults), interrupted=INTERRUPTED)


def _run(argv: Sequence[str] | None, defaults: Defaults, errors: Console) -> int:
    options, overrides = build_parser(defaults).parse_known_args(argv)
    if options.config is None:
        options.config, overrides = "demo", with_defaults(overrides, defaults.settings)
    # one worker a trial: several trials at once use a cluster better
    overrides = with_defaults(overrides, ["--scaling.num_workers=1", f"--run.name={defaults.name}"])
    sweep = _sweep(options, overrides)
    sweep.check_options()  # before data are drawn or a model is downloaded
    options.file = config.find(options.config).absolute()
    from groundray.cli.embedded_world import with_embedded_world
    from groundray.cli.start_model import with_start_model
    from groundray.tracking.inquiry import Inquiry

    go_home(errors.print)
    console = table_console(soft_wrap=True, optional=True)
    settings = with_start_model(sweep.settings, errors.print, get_began=sweep.stored_start)
    sweep = replace(sweep, settings=with_embedded_world(settings, console))
    inquiry = Inquiry(sweep.settings, lambda _: sweep.stored_id())
    sweep.check()
    if problem := inquiry.problem():
        raise SettingsError(problem)
    sweep.ensure_state_is_trusted(options.resume, options.trust_storage)
    status = _run_trials(sweep, options, console, errors)
    if status > EXIT_SIGNAL:
        errors.print(INTERRUPTED)
    return status


def with_defaults(overrides: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Return command-line settings, preceded by those defaults (`--any.setting=VALUE`) that they do not override."""
    given = {word.partition("=")[0] for word in overrides}
    return [*(word for word in defaults if word.partition("=")[0] not in given), *overrides]


def build_parser(defaults: Defaults = DEFAULTS) -> argparse.ArgumentParser:
    """Return the parser of the command's own options. The arguments that it does not know are settings."""
    parser = argparse.ArgumentParser(
        prog="groundray sweep" if defaults == DEFAULTS else None,
        description=f"{defaults.description} Rerun the same command with --resume to resume.",
        epilog="Any setting of a run may be given as well, for all trials: see groundray train --help",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="PRESET|FILE.yaml",
        help=f"preset ({', '.join(config.presets())}) or YAML file of the runs' settings "
        f"(default: {' '.join(['demo', *defaults.settings])})",
    )
    parser.add_argument(
        "--space",
        action="append",
        metavar="SETTING=SPACE",
        help="setting to sweep, as choice:A,B,... or uniform:LOW:HIGH or loguniform:LOW:HIGH; once for each setting"
        + (f" (default: {' '.join(defaults.space)})" if defaults.space else " (required)"),
        required=not defaults.space,
    )
    parser.add_argument(
        "--metric",
        action="append",
        required=defaults.metric is None,
        metavar="STAGE/METRIC[:min|max]",
        help="validation metric that compares trials, or a stage for the metric of its `best`; trials train up to its "
        "stage; give it several times for the Pareto front of several metrics"
        + (f" (default: {defaults.metric})" if defaults.metric else " (required)"),
    )
    parser.add_argument(
        "--order",
        choices=("min", "max"),
        help="which values of the metric are better, as :min or :max after it (default: min for a loss or rank, else "
        "max)",
    )
    parser.add_argument(
        "--search",
        choices=("grid", "random", "tpe", "pbt"),
        help="all combinations, random points, Optuna's TPE, or population-based training, whose members take up each "
        "other's training (default: grid, or random if a space is a range)",
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        default=10,
        metavar="N",
        help="points to draw, without a grid; with pbt, the members of the population (default: 10)",
    )
    parser.add_argument(
        "--perturb-every",
        type=int,
        metavar="EPOCHS",
        help="epochs of a generation of pbt, after which the weakest members follow the strongest (default: a quarter "
        "of the epochs)",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trials at each point (default: 1)")
    parser.add_argument(
        "--early-stopping",
        choices=("asha", "none"),
        help="scheduler that stops trials that fall behind (default: asha; none with several metrics or pbt)",
    )
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="trials at once (default: as many as fit on the cluster)"
    )
    parser.add_argument("--resume", action="store_true", help="resume an interrupted sweep")
    parser.add_argument(
        "--trust-storage",
        action="store_true",
        help="with --resume: read Ray Tune's state, which is pickled Python, from storage that others may write to",
    )
    parser.add_argument(
        "--register",
        metavar="NAME",
        nargs="?",
        const="groundray",
        help="register the best model in MLflow as models:/NAME@best (default: do not; without NAME: groundray)",
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's own logs")
    parser.set_defaults(default_space=defaults.space, default_metric=defaults.metric)
    return parser


def _sweep(options: argparse.Namespace, overrides: Sequence[str]) -> Sweep:
    from groundray.runtime.tune.search_space import parse_spaces
    from groundray.runtime.tune.spec import Metric, Sweep

    for name in ("num_samples", "seeds", "max_concurrent", "perturb_every"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise SettingsError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    settings = config.load(options.config, overrides)
    if options.register and not settings.tracking.uses("mlflow"):
        got = ",".join(settings.tracking.to) if settings.tracking.enabled else "tracking.enabled false"
        raise SettingsError(
            f"--register: expected tracking.enabled true and mlflow in tracking.to, got {got}: a model is "
            "registered in MLflow"
        )
    named: list[str] = options.metric or [options.default_metric]
    if len(named) > 1 and options.order:
        raise SettingsError(
            f"--order {options.order}: expected one --metric, got {len(named)}: give each its own, such as "
            f"--metric {named[0].partition(':')[0]}:{options.order}"
        )
    if len(named) > 1 and options.register:
        raise SettingsError(
            f"--register: expected one --metric, got {len(named)}: no one model is the best of several metrics; leave "
            "out --register, or sweep by one of them"
        )
    metric, *others = (Metric.parse(name, options.order, settings) for name in named)
    swept = parse_spaces(options.space or options.default_space, settings)
    population = options.search == "pbt"
    if options.perturb_every and not population:
        raise SettingsError("--perturb-every: expected --search pbt, whose generations have so many epochs")
    epochs = settings.stage(metric.stage).epochs if metric.stage in settings.stages else 1
    return Sweep(
        settings=settings,
        spaces=swept,
        metric=metric,
        others=tuple(others),
        search=options.search or ("grid" if all(space.kind == "choice" for space in swept) else "random"),
        num_samples=options.num_samples,
        seeds=options.seeds,
        early_stopping=(options.early_stopping or ("none" if others or population else "asha")) == "asha",
        max_concurrent=options.max_concurrent,
        perturb_every=options.perturb_every or max(1, round(epochs / 4)),
    )


def _run_trials(sweep: Sweep, options: argparse.Namespace, console: Console, errors: Console) -> int:
    from groundray.cli.progress import Reporter
    from groundray.cli.run_session import Signals, run_training
    from groundray.runtime.tune import trials as tune
    from groundray.runtime.tune.spec import FRONT, PARALLEL, PLOT, RESULTS, SHARED, TABLE, TRIALS
    from groundray.tracking.protocol import Status
    from groundray.tracking.sweep_log import STATUSES, SweepLog
    from groundray.training.layout import is_complete

    started, reporter, folder, settings = time.monotonic(), Reporter(console), sweep.folder, sweep.settings
    with tune.connected(sweep, options.verbose, console.print) as concurrent:
        claimed = sweep.claim(options.resume)
        console.print(f"sweep  {folder}, {concurrent} trials at once")
        tracked = settings.tracking.enabled
        log = SweepLog(settings, folder, claimed, sweep.definition(), errors.print) if tracked else None
        parent = claimed.id if tracked else None
        shared = sweep.shared_settings()
        if shared and not is_complete(folder / SHARED):
            console.print(f"{', '.join(sweep.shared_stages)}  trained once, for all trials")
            signals = Signals()
            status = run_training(
                shared, reporter, errors.print, verbose=options.verbose, parent=parent, signals=signals
            )
            if status:
                return status
            if signals.received:  # too late to stop that run
                return EXIT_SIGNAL + signals.received[0]
        with tune.shared_features(sweep, reporter.observe):
            trials, stopped = tune.run_sweep(sweep, concurrent, parent, options.resume, console.print)

    winners = _show(sweep, options, trials, console)
    winner = winners.get(str(sweep.metric))
    if log:
        best = {name: value for name, trial in winners.items() if (value := trial.value) is not None}
        runs: dict[str, Status] = {SHARED: "FINISHED"}
        runs |= {f"{TRIALS}/{trial.name}": STATUSES.get(trial.state, "KILLED") for trial in trials}
        files = [TABLE, RESULTS, PLOT, PARALLEL, *([FRONT] if sweep.others else [])]
        log.close(best, files, runs, finished=not stopped)
        if winner and options.register and not stopped:
            version = log.register(folder / TRIALS / winner.name, options.register, ALIAS)
            if version:
                console.print(f"model   models:/{options.register}@{ALIAS} is version {version}")
    console.print(f"table, pictures and trials  {folder}  {(time.monotonic() - started) / 60:.1f} minutes")
    if stopped:
        return EXIT_SIGNAL + stopped
    return 0 if winner else EXIT_FAILED


def _show(sweep: Sweep, options: argparse.Namespace, trials: Sequence[Trial], console: Console) -> dict[str, Trial]:
    """Print the table, write it with the pictures into the sweep's folder, and return the best trial by each metric."""
    from groundray.runtime.tune import results
    from groundray.runtime.tune.spec import RESULTS, TABLE, describe_values

    metrics = sweep.metrics
    head, lines = results.table(trials, *metrics)
    table = Table(title=f"{', '.join(map(str, metrics))}, {'front' if sweep.others else 'best'} first")
    for column in head:  # a setting's own name, below its section's
        table.add_column(column.replace("/", "/\n").replace(".", ".\n"), justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    for trial in trials:
        if trial.error:
            console.print(f"{trial.name}  {describe_values(trial.all_values)}  {trial.error}")
    text = io.StringIO()
    csv.writer(text).writerows([head, *lines])
    sweep.folder.write_bytes(TABLE, text.getvalue().encode())
    sweep.folder.write_json(RESULTS, [asdict(trial) for trial in trials])
    _draw(sweep, trials)
    winners: dict[str, Trial] = {}
    for metric in metrics:
        winner = results.best_trial(results.valued_by(trials, metric) if sweep.others else trials, metric)
        if winner:
            winners[str(metric)] = winner
            console.print(f"best    {winner.name}  {describe_values(winner.all_values)}  {metric} {winner.value:.4g}")
            console.print(
                f"        python -m groundray.train {shlex.join(command(sweep, options.config, options.file, winner))}"
            )
    return winners


def _draw(sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Write the pictures into the sweep's folder."""
    from groundray.runtime.tune import front_plot, parallel_plot, plot
    from groundray.runtime.tune.spec import FRONT, PARALLEL, PLOT

    name = sweep.settings.run.name
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        plot.draw(local / PLOT, name, trials, sweep.spaces, *sweep.metrics)
        parallel_plot.draw(local / PARALLEL, name, trials, sweep.spaces, *sweep.metrics)
        if sweep.others:
            front_plot.draw(local / FRONT, name, trials, sweep.metrics)
        for file in local.iterdir():
            sweep.folder.write_bytes(file.name, file.read_bytes())


def command(sweep: Sweep, preset: str, file: Path, trial: Trial) -> list[str]:
    """Return the arguments of `groundray.train` that train a trial again, to the same weights.

    Args:
        preset: the preset or file as it was typed.
        file: the file of its settings.
    """
    name = f"{sweep.settings.run.name}-best"
    shared = sweep.settings
    own = {"run.storage": shared.run.storage, "run.name": name, "features.folder": shared.features.folder}
    own |= {"run.start_alias": None, "run.start_files": None}  # filled in by the run
    settings = config.changed(sweep.settings_of(trial.all_values, name, trial.continue_from), own)
    return ["--config", preset, *config.to_cli_args(settings, config.load(file))]


if __name__ == "__main__":
    sys.exit(main())
